"""What the states of one batch come to, sample by sample, collected while they stream by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mllm.analysis.alignment.drawn_pairs import Member
from lightning_mllm.analysis.alignment.similarity import (
    SAME_POSITION_MODES,
    TINY,
    compact,
    names,
    same_position,
    set_vectors,
    take,
    token_similarities,
    unit,
)
from lightning_mllm.analysis.core.token_sets import SETS, TokenSets
from lightning_mllm.analysis.forward.observe import LayerState as State
from lightning_mllm.statistics.masked import masked_max, masked_median, masked_min

PAIRED, PAIRED_INPUT = "paired", "paired input"
NORMS = {"median": masked_median, "max": masked_max, "min": masked_min}


def number_names(gaps: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the numbers that each sample has of itself, per state and layer."""
    return (
        *names(PAIRED),
        *names(PAIRED_INPUT),
        *(name for gap in gaps for each in SETS for name in _consecutive(gap, each)),
        *(f"norm {each} {statistic}" for each in SETS for statistic in NORMS),
        *(f"update ratio {each}" for each in SETS),
        *(f"sinks {each}" for each in SETS),
    )


@dataclass(frozen=True, eq=False)
class _Layer:
    """What is known of a layer.

    Attributes:
        states: (batch, sequence, width), in the model's dtype.
        norms: (batch, sequence).
        kept: (batch, variants, sets, sequence) bool.
        vectors: (batch, variants, vector modes, sets, width).
    """

    states: Tensor
    norms: Tensor
    kept: Tensor
    vectors: Tensor


class AlignmentReading:
    """Observes the states of a batch; see `stream_states`.

    Args:
        sets: Which tokens count.
        masks: (batch, sets, sequence) bool, from `sets.of`; none is empty.
        depth: Number of blocks.
        gaps: How many layers are between two at which the same token is compared.
        members: Rows of the samples whose tokens are kept.
    """

    def __init__(
        self, sets: TokenSets, masks: Tensor, depth: int, gaps: Sequence[int], members: Sequence[int] = ()
    ) -> None:
        self.members = {row: Member(masks[row]) for row in members}
        self._sets, self._masks, self._depth, self._gaps = sets, masks, depth, gaps
        self._counted = masks.any(1)[..., None]
        self._at = [compact(masks[:, k]) for k in range(len(SETS))]
        self._columns = {name: column for column, name in enumerate(number_names(gaps))}
        self._numbers: dict[State, Tensor] = {}  # (batch, variants, layers, numbers)
        self._vectors: dict[State, Tensor] = {}  # (batch, variants, layers, vector modes, sets, width)
        self._earlier: dict[tuple[State, int], _Layer] = {}
        self._input: list[Tensor] = []  # the perceptual tokens that enter the LLM, and which of them are kept

    def observe(self, state: State, layer: int, states: Tensor) -> None:
        """Take in the states of a layer, (batch, sequence, width)."""
        states = states.masked_fill(~self._counted, 0)  # whatever stands in padding
        units, norms = unit(states)
        kept = self._sets.kept(self._masks, norms)
        here = _Layer(states, norms, kept, set_vectors(units, norms, kept))
        self._put_vectors(state, layer, here.vectors)
        self._compare_sets(state, layer, units, here)
        self._compare_layers(state, layer, here)
        self._measure_sizes(state, layer, here)
        if state is State.RESIDUAL:
            for row, member in self.members.items():
                member.add(states[row], kept[row])
        self._earlier[state, layer] = here
        self._earlier.pop((state, layer - max(self._gaps_of(state), default=1)), None)

    def measured(self) -> dict[str, Tensor]:
        """Return what has sums, (batch, variants, layers, ...) each; NaN at layers that a state does not have."""
        found = {f"{state} numbers": numbers for state, numbers in self._numbers.items()}
        for state, vectors in self._vectors.items():
            found |= {f"{state} vectors": vectors, f"{state} squares": vectors.square().sum(-1)}
        return found

    def _compare_sets(self, state: State, layer: int, units: Tensor, here: _Layer) -> None:
        """Compare the sample's perceptual tokens, and those that enter the LLM, with its textual ones."""
        perceptual, textual = (take(units, at) for at in self._at)
        kept = [take(here.kept[:, :, k].mT, at).mT for k, at in enumerate(self._at)]
        self._put_similarity(PAIRED, state, layer, here.vectors, token_similarities(perceptual, textual, *kept))
        if state is State.RESIDUAL:
            self._input = self._input or [perceptual, kept[0]]  # layer 0 comes first
            units_0, kept_0 = self._input
            vectors = torch.cat([self._vectors[state][:, :, 0, :, :1], here.vectors[..., 1:, :]], dim=-2)
            found = token_similarities(units_0, textual, kept_0, kept[1])
            self._put_similarity(PAIRED_INPUT, state, layer, vectors, found)

    def _compare_layers(self, state: State, layer: int, here: _Layer) -> None:
        """Compare each token with itself some layers before; the numbers are the earlier layer's."""
        for gap in self._gaps_of(state):
            before = self._earlier.get((state, layer - gap))
            if before is None:
                continue
            products = (here.states.double() * before.states.double()).sum(-1)
            cosines = (products / (here.norms * before.norms).clamp(min=TINY))[:, None]
            for k, name in enumerate(SETS):
                kept = here.kept[:, :, k] & before.kept[:, :, k]
                of_means = (here.vectors[:, :, 0, k] * before.vectors[:, :, 0, k]).sum(-1)
                found = [*same_position(cosines, kept), of_means]
                self._put(state, layer - gap, dict(zip(_consecutive(gap, name), found, strict=True)))

    def _measure_sizes(self, state: State, layer: int, here: _Layer) -> None:
        """Note the tokens' norms, their ratios to what they are added to, and the share of attention sinks."""
        stream = self._added_to(state, layer)
        found: dict[str, Tensor] = {}
        for k, name in enumerate(SETS):
            kept = here.kept[:, :, k]
            for statistic, of in NORMS.items():
                found[f"norm {name} {statistic}"] = of(here.norms[:, None], kept)
            if stream is not None:
                found[f"update ratio {name}"] = masked_median((here.norms / stream.clamp(min=TINY))[:, None], kept)
            if self._sets.sink_ratio is not None:
                share = 1 - kept[:, -1].sum(-1) / kept[:, 0].sum(-1)  # of all tokens, left out of the last variant
                found[f"sinks {name}"] = share[:, None].expand(-1, kept.shape[1])
        self._put(state, layer, found)

    def _added_to(self, state: State, layer: int) -> Tensor | None:
        """Return the norms of the residual stream that an update is added to, (batch, sequence), where it is one."""
        stream, attention = self._earlier.get((State.RESIDUAL, layer - 1)), self._earlier.get((State.SA, layer))
        if stream is not None and state is State.SA:
            return stream.norms
        if stream is not None and attention is not None and state is State.FC2:
            added: Tensor = (stream.states.double() + attention.states.double()).norm(dim=-1)
            return added
        return None

    def _gaps_of(self, state: State) -> list[int]:
        """Return the gaps that a state is compared across: inside blocks, from one block to the next only."""
        return [gap for gap in self._gaps if state is State.RESIDUAL or gap == 1]

    def _put_similarity(self, prefix: str, state: State, layer: int, vectors: Tensor, tokens: Tensor) -> None:
        products = (vectors[..., 0, :] * vectors[..., 1, :]).sum(-1)  # (batch, variants, vector modes)
        found = torch.cat([products, tokens], dim=-1)
        self._put(state, layer, dict(zip(names(prefix), found.unbind(-1), strict=True)))

    def _put(self, state: State, layer: int, found: Mapping[str, Tensor]) -> None:
        if state not in self._numbers:
            shape = (len(self._masks), len(self._sets.variants), self._depth + 1, len(self._columns))
            self._numbers[state] = torch.full(shape, torch.nan, dtype=torch.float64, device=self._masks.device)
        for name, values in found.items():
            self._numbers[state][:, :, layer, self._columns[name]] = values

    def _put_vectors(self, state: State, layer: int, vectors: Tensor) -> None:
        if state not in self._vectors:
            batch, variants, *rest = vectors.shape
            self._vectors[state] = vectors.new_full((batch, variants, self._depth + 1, *rest), torch.nan)
        self._vectors[state][:, :, layer] = vectors


def _consecutive(gap: int, tokens: str) -> tuple[str, ...]:
    return names(f"consecutive {gap} {tokens}", (*SAME_POSITION_MODES, "avg"))
