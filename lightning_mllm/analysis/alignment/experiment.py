"""Implicit alignment: how similar perceptual and textual tokens are inside the LLM, per layer.

Measures of Shukor and Cord, "Implicit Multimodal Alignment: On the Generalization of Frozen LLMs to
Multimodal Inputs" (NeurIPS 2024, arXiv 2405.16700), over all pairs of samples, though samples go by
one after the other: a mean over all pairs of inner products is the inner product of the means, and
the mean of their squares the trace of a product of two second moments. Only what needs two samples'
tokens at once is taken over the pairs of a drawn few.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from math import isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_mllm.analysis.alignment.drawn_pairs import DrawnPairs
from lightning_mllm.analysis.alignment.kinds import rows_of_kinds, sums_of_kind
from lightning_mllm.analysis.alignment.measures import AlignmentMeasures
from lightning_mllm.analysis.alignment.summary import summarise_alignment
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.core.running_sums import RunningSums
from lightning_mllm.analysis.core.streamed import StreamedAnalysis
from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.analysis.forward.observe import (
    ObservedState,
    StateName,
    check_observed_states,
    observe_states,
    observe_stream,
)
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.store.seeds import seed_rank_of
from lightning_mllm.types import Sample

_PAIRS = "pairs-*.safetensors"  # of other processes than the first


class Alignment(StreamedAnalysis):
    """Compares perceptual with textual tokens, and each layer with later ones.

    The measures of each layer are: the similarity of the two sets, of one sample and of all pairs
    of samples, at the same layer and with the perceptual tokens as they enter the LLM; the
    similarity within each set; that of tokens with themselves some layers later; norms, and inside
    layers the size of updates beside the residual stream; the share of attention sinks. The scores,
    which are means over layers, are in the result's settings; see `alignment_score`.

    Args:
        states: Which states are compared: `residual`, or states inside layers, such as `SA`.
        sets: Which tokens count as perceptual and as textual.
        gaps: Distances, in layers, at which each token is compared with itself; inside layers only
            the distance 1 is used.
        pair_budget: About how many pairs of samples are compared token by token, for median,
            maximum and minimum.
        deviation: Whether the exact standard deviation over all pairs is computed too. It takes two
            matrices of width x width per layer, state and mode (`avg`, `mean`), with sinks and
            without: 1 GB per layer and state of a 7B model, and half of that where `sink_ratio` is
            null.
        between_kinds: Whether samples of each kind are also compared with one another and with
            those of each other kind; the sums take 140 MB per kind of a 7B model.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default
            all.
        noise: Whether the model also runs on noise, uniform between 0 and 1, in place of the
            perceptual tokens.
        groups: Number of groups that samples are put into, for intervals.
        seed: Seed of groups, pairs and noise.
        snapshot_every: Number of batches between two files of what is found so far.
        label: Name of the analysis and its folder, where one run has several of its class.
    """

    default_name: ClassVar[str] = "alignment"

    def __init__(
        self,
        *,
        states: Sequence[StateName] = ("residual",),
        sets: TokenSets = TokenSets(),
        gaps: Sequence[int] = (1, 8),
        pair_budget: int = 120,
        deviation: bool = False,
        between_kinds: bool = False,
        kind_depth: int | None = None,
        noise: bool = False,
        groups: int = 16,
        seed: int = 0,
        snapshot_every: int = 50,
        label: str = "",
    ) -> None:
        self.states, self.gaps = observe_states(states), tuple(gaps)
        self.pair_budget, self.deviation, self.noise = pair_budget, deviation, noise
        self.between_kinds, self.kind_depth = between_kinds, kind_depth
        if ObservedState.RESIDUAL not in self.states:
            raise ConfigError(
                f"Alignment.states needs {ObservedState.RESIDUAL!s}, of which the scores are made. "
                "Add it."
            )
        if min(self.gaps, default=1) < 1 or pair_budget < 0:
            raise ConfigError(
                "Alignment's gaps must be 1 or more and pair_budget 0 or more, not "
                f"gaps={list(gaps)} and pair_budget={pair_budget}."
            )
        super().__init__(
            sets=sets, groups=groups, seed=seed, snapshot_every=snapshot_every, label=label
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the sums."""
        return {
            "states": [str(state) for state in self.states],
            "sets": asdict(self.sets),
            "gaps": list(self.gaps),
            "pair_budget": self.pair_budget,
            "deviation": self.deviation,
            "between_kinds": self.between_kinds,
            "kind_depth": self.kind_depth,
            "noise": self.noise,
            "groups": self.groups,
            "seed": self.seed,
        }

    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse data without images, and without two kinds where kinds are compared."""
        samples = list(samples)
        super().check(samples)
        kinds = rows_of_kinds([sample.kind for sample in samples if sample.images], self.kind_depth)
        if self.between_kinds and len(kinds) < 2:
            raise ConfigError(
                f"{self.name}.between_kinds compares samples of different kinds, but those with "
                f"images are of {', '.join(kinds) or 'no kind'}. Use data with two kinds or more, "
                "a higher kind_depth, or set it to false."
            )

    def check_model(self, backbone: Backbone) -> None:
        """Refuse states that the model's layers do not have."""
        check_observed_states(backbone, self.states)

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, masks: Tensor
    ) -> dict[str, Tensor]:
        """Compare the states of a batch."""
        depth = len(decoder_layers(backbone))
        members = self.pairs.wanted(batch.sample_ids)
        measures = AlignmentMeasures(self.sets, masks, depth, self.gaps, members)
        observe_stream(backbone, batch, self.states, measures.observe)
        measured = measures.measured()
        if self.noise:
            blind = AlignmentMeasures(self.sets, masks, depth, ())
            enter = _Noise(batch.sample_ids, masks[:, 0], self.seed).replace_tokens
            unseen = replace(batch, images=())  # DeepStack would add the picture after the noise
            observe_stream(backbone, unseen, (ObservedState.RESIDUAL,), blind.observe, enter)
            measured["noise vectors"] = blind.measured()[f"{ObservedState.RESIDUAL} vectors"][
                ..., :1, :
            ]
        self.pairs.device = masks.device
        self.pairs.add({batch.sample_ids[row]: member for row, member in measures.members.items()})
        return measured

    def add(self, measured: Mapping[str, Tensor], batch: MultimodalBatch) -> None:
        """Add to the sums, including those of kinds, and to the second moments of all samples."""
        super().add(measured, batch)
        if self.between_kinds:
            vectors = measured[f"{ObservedState.RESIDUAL} vectors"]
            squares = measured[f"{ObservedState.RESIDUAL} squares"]
            for kind, rows in rows_of_kinds(batch.kinds, self.kind_depth).items():
                sums = sums_of_kind(kind, vectors[rows], squares[rows])
                self.add_to_groups(sums, batch.take(rows))
        if self.deviation and len(batch):
            for state in self.states:
                # (variants, layers, modes, sets, batch, width)
                vectors = measured[f"{state} vectors"].movedim(0, -2)
                self.found.add(f"{state} moments", vectors.mT @ vectors)
                fourth = measured[f"{state} squares"].square().sum(0)
                self.found.add(f"{state} fourth moments", fourth)

    def read_again(self, found: RunningSums) -> set[str]:
        """Return the samples whose tokens were kept: no file has them."""
        return self.pairs.lowest(found.done - found.left_out)

    def settle(self) -> None:
        """Compare the pairs, or hand them to the first process; write what is not written yet."""
        if self.pairs.changed and self._rank and self._folder is not None:
            self.pairs.write(self._folder / f"pairs-{self._rank}.safetensors")
            self.pairs.changed = False
        elif self.pairs.changed:
            self.found.kept = self.pairs.compare()
            self._unwritten += 1
        super().settle()

    def merge(self) -> None:
        """Make one file of what all processes have found; the pairs are those of all samples."""
        for path in sorted(self._folder.glob(_PAIRS)) if self._folder is not None else ():
            self.pairs.take_in(path)
        super().merge()

    def summarise(self, found: RunningSums, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return curves with their intervals."""
        return summarise_alignment(
            self.name,
            found,
            settings,
            states=self.states,
            variants=self.sets.variants,
            gaps=self.gaps,
        )

    def reset(self) -> None:
        """Forget all samples; what is in a folder stays there."""
        super().reset()
        size = (1 + isqrt(1 + 8 * self.pair_budget)) // 2  # so many have at most as many pairs
        self.pairs = DrawnPairs(size if self.pair_budget else 0, self.seed)


class _Noise:
    """Noise in place of a batch's perceptual tokens.

    The noise of a sample depends on its id and the seed alone.

    Args:
        sample_ids: Id of each sample.
        mask: (batch, sequence) bool, the perceptual tokens.
        seed: Seed of the noise.
    """

    def __init__(self, sample_ids: Sequence[str], mask: Tensor, seed: int) -> None:
        self._sample_ids, self._mask, self._seed = sample_ids, mask, seed

    def replace_tokens(self, entering: Tensor) -> Tensor:
        """Return (batch, sequence, width) with noise where the mask is."""
        changed = entering.clone()
        for row, sample_id in enumerate(self._sample_ids):
            drawn = torch.Generator().manual_seed(
                seed_rank_of(f"noise/{sample_id}", self._seed) >> 1
            )
            size = (int(self._mask[row].sum()), entering.shape[-1])
            changed[row, self._mask[row]] = torch.rand(size, generator=drawn).to(entering)
        return changed
