"""What words the LLM's states stand for, layer by layer: perceptual and textual tokens through the model's own head.

Section 3 of Shukor and Cord (arXiv 2405.16700): the distribution over the vocabulary of each token, from the final norm
and the head at each layer (the logit lens), its entropy, the Kullback-Leibler divergence between the two sets of tokens
of a sample and between layers of one token, in nats, and the likeliest words. States go through the head some at a
time; no array of tokens x vocabulary is kept. What a token does not see, the model's head as it is loaded, decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.core.analysis import STATISTICS
from lightning_mllm.analysis.core.result import AnalysisResult, Plot
from lightning_mllm.analysis.core.running_sums import Found, StreamedAnalysis
from lightning_mllm.analysis.core.token_sets import ALL_TOKENS, NO_SINKS, SETS, TokenSets
from lightning_mllm.analysis.forward.float32_head import head_logits
from lightning_mllm.analysis.forward.observe import State, stream_states
from lightning_mllm.analysis.lens.batch_measures import WordReading, word_numbers
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.statistics.jackknife import GROUPS, jackknife_of_means
from lightning_mllm.statistics.picture_bootstrap import no_numbers
from lightning_mllm.types import MultimodalBatch


class Vocabulary(StreamedAnalysis):
    """Reads words from perceptual and textual tokens.

    Args:
        layers: At which; by default at all, 0 to L.
        gaps: Layers between two at which a token's distributions are compared.
        top: How many of the likeliest words of a set are reported per layer.
        per_token: How many words of each token count for that.
        sets: Which tokens count; without attention sinks where `without_sinks` says so.
        without_sinks: Whether attention sinks are left out.
        groups: Into how many groups samples are put, for intervals.
        seed: Of the groups.
        snapshot_every: Batches between two files of what is found so far.
        label: A name of your own.
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
        super().__init__(sets=sets, groups=groups, seed=seed, snapshot_every=snapshot_every, label=label)
        if layers is not None and (not layers or len(set(layers)) < len(layers)):
            raise ConfigError(f"Vocabulary.layers names layers, each once, or is null for all; found {list(layers)}.")
        if min(self.gaps, default=1) < 1 or top < 0 or per_token < 1:
            raise ConfigError(
                f"Vocabulary's gaps and per_token must be 1 or more and top 0 or more, not gaps={list(gaps)}, "
                f"per_token={per_token} and top={top}."
            )
        if without_sinks and sets.sink_ratio is None:
            raise ConfigError("Vocabulary.without_sinks needs sets.sink_ratio, which says what a sink is.")

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

    def measure(self, backbone: Backbone, batch: MultimodalBatch, masks: Tensor) -> dict[str, Tensor]:
        """Read the words of a batch."""
        if self._tokenizer is None:
            raise ConfigError(f"{self.name} needs the tokenizer: call prepare(tokenizer) before the first batch.")
        depth = len(decoder_layers(backbone))
        layers = tuple(range(depth + 1)) if self.layers is None else self.layers
        if unknown := [layer for layer in layers if not 0 <= layer <= depth]:
            raise ConfigError(f"Vocabulary.layers has {unknown[0]}; the model has states 0 to {depth}.")
        head = backbone.lm_head
        norm: nn.Module = backbone.decoder.norm  # type: ignore[assignment]  # a module
        size: int = head.weight.shape[0]  # type: ignore[assignment,index]  # of a Linear
        if self.per_token > size:
            raise ConfigError(f"{self.name}.per_token is {self.per_token}, but the model has {size} words.")

        def lens(states: Tensor) -> Tensor:
            # not called: what is observed would be observed again
            return head_logits(head, norm.forward(states)).double().log_softmax(-1)

        def keep(states: Tensor) -> Tensor:
            if not self.without_sinks:
                return masks
            return self.sets.kept(masks, states.double().norm(dim=-1))[:, -1]

        self._size = size
        reading = WordReading(lens, keep, masks, layers, gaps=self.gaps, vocabulary=size, per_token=self.per_token)
        stream_states(backbone, batch, (State.RESIDUAL,), reading.observe)
        words = {f"words {each}": ids.flatten(2) for each, ids in zip(SETS, reading.words, strict=True)}
        return {"numbers": reading.numbers, **words}

    def add(self, measured: Mapping[str, Tensor], batch: MultimodalBatch) -> None:
        """Add to the sums, and count the words."""
        super().add({"numbers": measured["numbers"]}, batch)
        for name in (f"words {each}" for each in SETS):
            ids = measured[name].movedim(1, 0).flatten(1) + 1  # (layers, words of all samples), 0 for none
            counts = torch.zeros(len(ids), self._size + 1, dtype=torch.float64, device=ids.device)
            self.found.add(name, counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=torch.float64))[:, 1:])

    def summarise(self, found: Found, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return curves with their intervals, and the words."""
        numbers, names = found.sums["numbers"], word_numbers(self.gaps)
        layers = tuple(range(numbers.shape[1])) if self.layers is None else self.layers
        coords: dict[str, tuple[Any, ...]] = {
            "tokens": (NO_SINKS if self.without_sinks else ALL_TOKENS,),
            "measure": names,
            "layer": layers,
            "statistic": STATISTICS,
        }
        values = no_numbers(coords)
        values[0] = jackknife_of_means(numbers.movedim(-1, 1).numpy(), found.sums["n"].numpy())
        more = {"left_out": len(found.left_out), "top_words": self._top_words(found, layers)}
        n = int(found.sums["n"].sum())
        return AnalysisResult(
            self.name, values, tuple(coords), coords, n, {**settings, "found": more}, tuple(_plots(self.gaps))
        )

    def _top_words(self, found: Found, layers: Sequence[int]) -> dict[str, dict[str, list[list[Any]]]]:
        """Return set -> layer -> the words that most tokens have as likeliest, and the share of all, in percent."""
        assert self._tokenizer is not None  # `measure` has it so
        words: dict[str, dict[str, list[list[Any]]]] = {}
        for each in SETS:
            counts = found.sums[f"words {each}"]
            best = counts.topk(min(self.top, counts.shape[1]))
            shares = 100 * best.values / counts.sum(1, keepdim=True)
            words[each] = {
                str(layer): [
                    [self._tokenizer.decode([word]), share]
                    for word, share in zip(ids.tolist(), own.tolist(), strict=True)
                    if share
                ]
                for layer, ids, own in zip(layers, best.indices, shares, strict=True)
            }
        return words


def _plots(gaps: Sequence[int]) -> Iterable[Plot]:
    one_sample = {"kl of means": "of mean distributions", "kl of tokens": "mean of pairs of tokens"}
    later = {f"kl consecutive {gap} {each}": f"{each}, {gap} on" for gap in gaps for each in SETS}
    yield _plot("divergence", one_sample, "Divergence of textual from perceptual tokens of a sample")
    yield _plot("entropy", {f"entropy {each}": each for each in SETS}, "Entropy of a token's distribution")
    if later:
        yield _plot("consecutive", later, "Divergence of a token's later distribution from its earlier one")


def _plot(name: str, shown: Mapping[str, str], title: str) -> Plot:
    return Plot(
        name,
        "lines",
        x="layer",
        y="measure",
        shown=shown,
        fixed={},
        xlabel="Layers behind (0: embedding)",
        label="Nats",
        title=title,
        over=GROUPS,
    )
