"""What words the LLM's states stand for, layer by layer, read through the model's own head.

This is section 3 of Shukor and Cord (arXiv 2405.16700). Each perceptual and textual token has a
distribution over the vocabulary at each layer, from the final norm and the head (the logit lens).
Measured are its entropy, the likeliest words, and the Kullback-Leibler divergence, in nats: between
the two sets of tokens of a sample, and between layers of one token. States go through the head some
at a time; no array of tokens x vocabulary is kept. Which tokens a token can attend to is decided by
the model as it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_mllm.alignment_names import ALL_TOKENS, NO_SINKS
from lightning_mllm.analysis.core.headline import make_layers_headline
from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.analysis.core.running_sums import RunningSums
from lightning_mllm.analysis.core.streamed import StreamedAnalysis
from lightning_mllm.analysis.core.token_sets import SETS, TokenSets
from lightning_mllm.analysis.forward.float32_head import (
    head_states_at_once,
    head_vocabulary_size,
    model_logits,
)
from lightning_mllm.analysis.forward.observe import ObservedState, observe_stream
from lightning_mllm.analysis.lens.measures import Keep, Lens, WordMeasures, word_measure_names
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.statistics.interval import STATISTICS, missing_interval
from lightning_mllm.statistics.jackknife import GROUPS, jackknife_of_means


class Vocabulary(StreamedAnalysis):
    """Reads words from perceptual and textual tokens.

    Args:
        layers: At which layers the lens is put; by default at all, 0 to L.
        gaps: Numbers of layers between two at which a token's distributions are compared.
        top: How many of the likeliest words of a set are reported per layer.
        per_token: How many words of each token count for that.
        sets: Which tokens count; attention sinks are left out only if `without_sinks` says so.
        without_sinks: Whether attention sinks are left out.
        groups: Into how many groups samples are put, for intervals.
        seed: Seed with which samples are put into groups.
        snapshot_every: Number of batches between two files of what is found so far.
        label: A name of your own for this analysis and its folder.
    """

    default_name: ClassVar[str] = "vocabulary"

    def __init__(
        self,
        *,
        layers: Sequence[int] | None = None,
        gaps: Sequence[int] = (1, 8),
        top: int = 10,
        per_token: int = 1,
        sets: TokenSets = TokenSets(),
        without_sinks: bool = False,
        groups: int = 16,
        seed: int = 0,
        snapshot_every: int = 50,
        label: str = "",
    ) -> None:
        self.layers, self.gaps = None if layers is None else tuple(layers), tuple(gaps)
        self.top, self.per_token, self.without_sinks = top, per_token, without_sinks
        self._size = 0  # of the vocabulary
        super().__init__(
            sets=sets, groups=groups, seed=seed, snapshot_every=snapshot_every, label=label
        )
        if layers is not None and (not layers or len(set(layers)) < len(layers)):
            raise ConfigError(
                "Vocabulary.layers names layers, each once, or is null for all; found "
                f"{list(layers)}."
            )
        if min(self.gaps, default=1) < 1 or top < 0 or per_token < 1:
            raise ConfigError(
                "Vocabulary's gaps and per_token must be 1 or more and top 0 or more, not "
                f"gaps={list(gaps)}, per_token={per_token} and top={top}."
            )
        if without_sinks and sets.sink_ratio is None:
            raise ConfigError(
                "Vocabulary.without_sinks needs sets.sink_ratio, which says what a sink is."
            )

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the sums."""
        return {
            "layers": None if self.layers is None else list(self.layers),
            "gaps": list(self.gaps),
            "top": self.top,
            "per_token": self.per_token,
            "sets": asdict(self.sets),
            "without_sinks": self.without_sinks,
            "groups": self.groups,
            "seed": self.seed,
        }

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, masks: Tensor
    ) -> dict[str, Tensor]:
        """Put the lens on the tokens of a batch."""
        _ = self.tokenizer  # needed after the last batch; refused now if it is lacking
        layers = self._layers_of(backbone)
        self._size = head_vocabulary_size(backbone.lm_head)
        if self.per_token > self._size:
            raise ConfigError(
                f"{self.name}.per_token is {self.per_token}, but the model has {self._size} words."
            )
        measures = WordMeasures(
            _lens(backbone),
            self._which_count(masks),
            masks,
            layers,
            gaps=self.gaps,
            vocabulary=self._size,
            per_token=self.per_token,
            at_once=head_states_at_once(backbone.lm_head),
        )
        observe_stream(backbone, batch, (ObservedState.RESIDUAL,), measures.observe)
        measured = {"numbers": measures.numbers}
        for each, ids in zip(SETS, measures.words, strict=True):
            measured[f"words {each}"] = ids.flatten(2)
        return measured

    def add(self, measured: Mapping[str, Tensor], batch: MultimodalBatch) -> None:
        """Add to the sums, and count the words."""
        super().add({"numbers": measured["numbers"]}, batch)
        for each in SETS:
            # (layers, words of all samples), 0 for none
            ids = measured[f"words {each}"].movedim(1, 0).flatten(1) + 1
            counts = ids.new_zeros(len(ids), self._size + 1, dtype=torch.float64)
            counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=torch.float64))
            self.found.add(f"words {each}", counts[:, 1:])

    def summarise(self, found: RunningSums, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return curves with their intervals, and the words."""
        numbers, names = found.sums["numbers"], word_measure_names(self.gaps)
        layers = tuple(range(numbers.shape[1])) if self.layers is None else self.layers
        coords: dict[str, tuple[Any, ...]] = {
            "tokens": (NO_SINKS if self.without_sinks else ALL_TOKENS,),
            "measure": names,
            "layer": layers,
            "statistic": STATISTICS,
        }
        values = missing_interval(coords)
        values[0] = jackknife_of_means(numbers.movedim(-1, 1).numpy(), found.sums["n"].numpy())
        more = {"left_out": len(found.left_out), "top_words": self._top_words(found, layers)}
        return AnalysisResult(
            self.name,
            values,
            tuple(coords),
            coords,
            int(found.sums["n"].sum()),
            {**settings, "found": more},
            _plots(self.gaps),
            make_layers_headline(
                values[0, : 2 + len(SETS)],
                names[: 2 + len(SETS)],
                layers,
                "Divergence of textual from perceptual tokens, and entropy of both, in nats.",
            ),
        )

    def _layers_of(self, backbone: Backbone) -> tuple[int, ...]:
        depth = len(decoder_layers(backbone))
        layers = tuple(range(depth + 1)) if self.layers is None else self.layers
        if unknown := [layer for layer in layers if not 0 <= layer <= depth]:
            raise ConfigError(
                f"Vocabulary.layers has {unknown[0]}; the model has states 0 to {depth}."
            )
        return layers

    def _which_count(self, masks: Tensor) -> Keep:
        """Return which tokens count at a layer, as a function of its states."""

        def keep(states: Tensor) -> Tensor:
            if not self.without_sinks:
                return masks
            return self.sets.kept(masks, states.double().norm(dim=-1))[:, -1]

        return keep

    def _top_words(
        self, found: RunningSums, layers: Sequence[int]
    ) -> dict[str, dict[str, list[list[Any]]]]:
        """Return set -> layer -> words, each with the percentage of tokens that it counts for."""
        words: dict[str, dict[str, list[list[Any]]]] = {}
        for each in SETS:
            counts = found.sums[f"words {each}"]
            best = counts.topk(min(self.top, counts.shape[1]))
            percentages = 100 * best.values / counts.sum(1, keepdim=True)
            words[each] = {}
            for layer, ids, own in zip(layers, best.indices, percentages, strict=True):
                pairs = []
                for word, percentage in zip(ids.tolist(), own.tolist(), strict=True):
                    if percentage:
                        pairs.append([self.tokenizer.decode([word]), percentage])
                words[each][str(layer)] = pairs
        return words


def _lens(backbone: Backbone) -> Lens:
    """Return the lens: states -> log-probabilities in float64."""
    norm = backbone.final_norm

    def lens(states: Tensor) -> Tensor:
        normed = norm.forward(states)  # not called: a call would be observed as well
        return model_logits(backbone, normed).double().log_softmax(-1)

    return lens


def _plots(gaps: Sequence[int]) -> tuple[ResultPlot, ...]:
    one_sample = {
        "kl of means": "of mean distributions",
        "kl of tokens": "mean of pairs of tokens",
    }
    entropies = {f"entropy {each}": each for each in SETS}
    later: dict[str, str] = {}
    for gap in gaps:
        for each in SETS:
            later[f"kl consecutive {gap} {each}"] = f"{each}, {gap} on"
    plots = [
        _plot("divergence", one_sample, "Divergence of textual from perceptual tokens of a sample"),
        _plot("entropy", entropies, "Entropy of a token's distribution"),
    ]
    if later:
        title = "Divergence of a token's later distribution from its earlier one"
        plots.append(_plot("consecutive", later, title))
    return tuple(plots)


def _plot(name: str, shown: Mapping[str, str], title: str) -> ResultPlot:
    return ResultPlot(
        name,
        "lines",
        x="layer",
        y="measure",
        shown=shown,
        fixed={},
        xlabel="Layers before the lens (0: embedding)",
        label="Nats",
        title=title,
        over=GROUPS,
    )
