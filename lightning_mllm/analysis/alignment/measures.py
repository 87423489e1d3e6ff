"""The measures of the samples of one batch, computed while the states of its layers stream by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from lightning_mllm.analysis.alignment.drawn_pairs import DrawnMember
from lightning_mllm.analysis.alignment.similarity import (
    SAME_POSITION_MODES,
    TINY,
    gather_for_similarity,
    make_similarity_vectors,
    name_similarity_measures,
    normalise_for_similarity,
    positions_for_similarity,
    same_position_similarity,
    similarity_measure_names,
    token_similarity,
)
from lightning_mllm.analysis.core.token_sets import SETS, TokenSets
from lightning_mllm.analysis.forward.observe import ObservedState
from lightning_mllm.statistics.masked import masked_max, masked_median, masked_min

PAIRED, PAIRED_INPUT = "paired", "paired input"
NORMS = {"median": masked_median, "max": masked_max, "min": masked_min}


def alignment_measure_names(gaps: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the numbers that each sample has of itself, per state and layer."""
    found = [*similarity_measure_names(PAIRED), *similarity_measure_names(PAIRED_INPUT)]
    for gap, each in product(gaps, SETS):
        found += _consecutive_names(gap, each)
    found += [f"norm {each} {statistic}" for each, statistic in product(SETS, NORMS)]
    found += [f"update ratio {each}" for each in SETS]
    found += [f"sinks {each}" for each in SETS]
    return tuple(found)


@dataclass(frozen=True, eq=False)
class _Layer:
    """The states of a layer, and what the measures need of them.

    Attributes:
        states: (batch, sequence, width), in the model's dtype.
        norms: (batch, sequence), the lengths of the states.
        kept: (batch, variants, sets, sequence) bool.
        vectors: (batch, variants, vector modes, sets, width).
    """

    states: Tensor
    norms: Tensor
    kept: Tensor
    vectors: Tensor


class AlignmentMeasures:
    """Observes the states of a batch; see `observe_stream`.

    Args:
        sets: Which tokens count as perceptual and as textual.
        masks: (batch, sets, sequence) bool, from `sets.of`; none is empty.
        depth: Number of layers of the LLM.
        gaps: Distances, in layers, at which each token is compared with itself.
        members: Rows of the samples whose tokens are kept.
    """

    def __init__(
        self,
        sets: TokenSets,
        masks: Tensor,
        depth: int,
        gaps: Sequence[int],
        members: Sequence[int] = (),
    ) -> None:
        self.members = {row: DrawnMember(masks[row]) for row in members}
        self._sets, self._masks, self._depth, self._gaps = sets, masks, depth, gaps
        self._counted = masks.any(1)[..., None]
        self._at = [positions_for_similarity(masks[:, k]) for k in range(len(SETS))]
        self._columns = {name: column for column, name in enumerate(alignment_measure_names(gaps))}
        self._numbers: dict[ObservedState, Tensor] = {}  # (batch, variants, layers, numbers)
        # (batch, variants, layers, vector modes, sets, width)
        self._vectors: dict[ObservedState, Tensor] = {}
        self._earlier: dict[tuple[ObservedState, int], _Layer] = {}
        # the perceptual tokens that enter the LLM, and which of them are kept
        self._input: list[Tensor] = []

    def observe(self, state: ObservedState, layer: int, states: Tensor) -> None:
        """Take in the states of a layer, (batch, sequence, width)."""
        states = states.masked_fill(~self._counted, 0)  # whatever the states of padding are
        units, norms = normalise_for_similarity(states)
        kept = self._sets.kept(self._masks, norms)
        here = _Layer(states, norms, kept, make_similarity_vectors(units, norms, kept))
        self._put_vectors(state, layer, here.vectors)
        self._compare_sets(state, layer, units, here)
        self._compare_layers(state, layer, here)
        self._measure_sizes(state, layer, here)
        if state is ObservedState.RESIDUAL:
            for row, member in self.members.items():
                member.add(states[row], kept[row])
        self._earlier[state, layer] = here
        self._earlier.pop((state, layer - max(self._gaps_of(state), default=1)), None)

    def measured(self) -> dict[str, Tensor]:
        """Return what is summed over samples, (batch, variants, layers, ...) each.

        It is NaN at layers that a state does not have.
        """
        found = {f"{state} numbers": numbers for state, numbers in self._numbers.items()}
        for state, vectors in self._vectors.items():
            found |= {f"{state} vectors": vectors, f"{state} squares": vectors.square().sum(-1)}
        return found

    def _compare_sets(self, state: ObservedState, layer: int, units: Tensor, here: _Layer) -> None:
        """Compare a sample's perceptual tokens with its textual ones.

        The perceptual tokens are those of the layer, and those that enter the LLM.
        """
        perceptual, textual = (gather_for_similarity(units, at) for at in self._at)
        kept = [
            gather_for_similarity(here.kept[:, :, k].mT, at).mT for k, at in enumerate(self._at)
        ]
        found = token_similarity(perceptual, textual, *kept)
        self._put_similarity(PAIRED, state, layer, here.vectors, found)
        if state is ObservedState.RESIDUAL:
            self._input = self._input or [perceptual, kept[0]]  # layer 0 comes first
            entering, entering_kept = self._input
            of_input = self._vectors[state][:, :, 0, :, :1]
            vectors = torch.cat([of_input, here.vectors[..., 1:, :]], dim=-2)
            found = token_similarity(entering, textual, entering_kept, kept[1])
            self._put_similarity(PAIRED_INPUT, state, layer, vectors, found)

    def _compare_layers(self, state: ObservedState, layer: int, here: _Layer) -> None:
        """Compare each token with itself some layers before.

        The numbers are stored at the earlier layer.
        """
        for gap in self._gaps_of(state):
            before = self._earlier.get((state, layer - gap))
            if before is None:
                continue
            products = (here.states.double() * before.states.double()).sum(-1)
            cosines = (products / (here.norms * before.norms).clamp(min=TINY))[:, None]
            for k, name in enumerate(SETS):
                kept = here.kept[:, :, k] & before.kept[:, :, k]
                of_means = (here.vectors[:, :, 0, k] * before.vectors[:, :, 0, k]).sum(-1)
                values = [*same_position_similarity(cosines, kept), of_means]
                found = zip(_consecutive_names(gap, name), values, strict=True)
                self._put(state, layer - gap, dict(found))

    def _measure_sizes(self, state: ObservedState, layer: int, here: _Layer) -> None:
        """Store the tokens' norms, update ratios, and the share of attention sinks.

        The update ratio is the norm of an update, over that of the stream that it is added to.
        """
        stream = self._norms_before(state, layer)
        found: dict[str, Tensor] = {}
        for k, name in enumerate(SETS):
            kept = here.kept[:, :, k]
            for statistic, compute in NORMS.items():
                found[f"norm {name} {statistic}"] = compute(here.norms[:, None], kept)
            if stream is not None:
                ratios = (here.norms / stream.clamp(min=TINY))[:, None]
                found[f"update ratio {name}"] = masked_median(ratios, kept)
            if self._sets.sink_ratio is not None:
                # the first variant has all tokens, the last one those that are not sinks
                share = 1 - kept[:, -1].sum(-1) / kept[:, 0].sum(-1)
                found[f"sinks {name}"] = share[:, None].expand(-1, kept.shape[1])
        self._put(state, layer, found)

    def _norms_before(self, state: ObservedState, layer: int) -> Tensor | None:
        """Return the norms of the stream that an update is added to, (batch, sequence).

        The result is None where the state is not an update, or the stream is not observed.
        """
        stream = self._earlier.get((ObservedState.RESIDUAL, layer - 1))
        attention = self._earlier.get((ObservedState.SA, layer))
        if stream is not None and state is ObservedState.SA:
            return stream.norms
        if stream is not None and attention is not None and state is ObservedState.FC2:
            added: Tensor = (stream.states.double() + attention.states.double()).norm(dim=-1)
            return added
        return None

    def _gaps_of(self, state: ObservedState) -> list[int]:
        """Return the gaps across which a state is compared; inside layers it is 1 only."""
        return [gap for gap in self._gaps if state is ObservedState.RESIDUAL or gap == 1]

    def _put_similarity(
        self, prefix: str, state: ObservedState, layer: int, vectors: Tensor, tokens: Tensor
    ) -> None:
        # (batch, variants, vector modes)
        products = (vectors[..., 0, :] * vectors[..., 1, :]).sum(-1)
        found = torch.cat([products, tokens], dim=-1)
        self._put(state, layer, name_similarity_measures(prefix, found))

    def _put(self, state: ObservedState, layer: int, found: Mapping[str, Tensor]) -> None:
        if state not in self._numbers:
            samples, variants = len(self._masks), len(self._sets.variants)
            shape = (samples, variants, self._depth + 1, len(self._columns))
            empty = torch.full(shape, torch.nan, dtype=torch.float64, device=self._masks.device)
            self._numbers[state] = empty
        for name, values in found.items():
            self._numbers[state][:, :, layer, self._columns[name]] = values

    def _put_vectors(self, state: ObservedState, layer: int, vectors: Tensor) -> None:
        if state not in self._vectors:
            batch, variants, *rest = vectors.shape
            shape = (batch, variants, self._depth + 1, *rest)
            self._vectors[state] = vectors.new_full(shape, torch.nan)
        self._vectors[state][:, :, layer] = vectors


def _consecutive_names(gap: int, tokens: str) -> tuple[str, ...]:
    return similarity_measure_names(f"consecutive {gap} {tokens}", (*SAME_POSITION_MODES, "avg"))
