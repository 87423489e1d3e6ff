"""What the words of one batch's states come to, sample by sample, collected while the states stream by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mllm.analysis.core.token_sets import SETS
from lightning_mllm.analysis.forward.observe import State

Lens = Callable[[Tensor], Tensor]  # (tokens, width) -> log-probabilities in float64, (tokens, vocabulary)
Keep = Callable[[Tensor], Tensor]  # states, (batch, sequence, width) -> which count, (batch, sets, sequence) bool

LOGITS = 1 << 23  # that exist at once, of each layer that is compared


def word_numbers(gaps: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the numbers that each sample has per layer, all in nats."""
    consecutive = (f"kl consecutive {gap} {each}" for gap in gaps for each in SETS)
    return "kl of means", "kl of tokens", *(f"entropy {each}" for each in SETS), *consecutive


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over the distributions p of each sample's tokens of a set.

    Attributes:
        n: (batch,), how many.
        p: (batch, vocabulary).
        log_p: (batch, vocabulary), of ln p.
        p_log_p: (batch,), of p . ln p.
    """

    n: Tensor
    p: Tensor
    log_p: Tensor
    p_log_p: Tensor

    @classmethod
    def of(cls, kept: Tensor, vocabulary: int) -> _Sums:
        """Return zeros for (batch, sequence) tokens."""
        zeros = torch.zeros(len(kept), vocabulary, dtype=torch.float64, device=kept.device)
        return cls(kept.sum(1).double(), zeros, zeros.clone(), zeros.new_zeros(len(kept)))

    def add(self, rows: Tensor, log_p: Tensor) -> None:
        """Add (tokens, vocabulary) distributions of samples, (tokens,)."""
        p = log_p.exp()
        self.p.index_add_(0, rows, p)
        self.log_p.index_add_(0, rows, log_p)
        self.p_log_p.index_add_(0, rows, (p * log_p).sum(1))

    def divergence_of_means(self, other: _Sums) -> Tensor:
        """Return KL of the mean distributions, (batch,)."""
        mine, theirs = (each.p / each.n[:, None] for each in (self, other))
        tiny = torch.finfo(torch.float64).tiny  # what is rarer has underflowed
        return (mine * (mine.clamp(min=tiny).log() - theirs.clamp(min=tiny).log())).sum(1)

    def mean_divergence(self, other: _Sums) -> Tensor:
        """Return the mean KL of all pairs of tokens, (batch,): mean p . ln p - (mean p) . (mean ln q)."""
        return (self.p_log_p - (self.p * other.log_p).sum(1) / other.n) / self.n


class WordReading:
    """Observes the states of a batch; see `stream_states`.

    Args:
        lens: From states to distributions.
        keep: Which tokens count.
        masks: (batch, sets, sequence) bool, of which they are a part.
        layers: At which the lens is put.
        gaps: Layers between two at which the same token is compared.
        vocabulary: Number of words.
        per_token: How many of the likeliest words are kept of each token.
    """

    def __init__(
        self,
        lens: Lens,
        keep: Keep,
        masks: Tensor,
        layers: Sequence[int],
        *,
        gaps: Sequence[int],
        vocabulary: int,
        per_token: int,
    ) -> None:
        self._lens, self._keep, self._layers, self._gaps = lens, keep, layers, gaps
        self._vocabulary, self._per_token = vocabulary, per_token
        self._earlier: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> states, and which tokens count
        self._columns = {name: k for k, name in enumerate(word_numbers(gaps))}
        shape = (len(masks), len(layers))
        self.numbers = masks.new_full((*shape, len(self._columns)), torch.nan, dtype=torch.float64)
        self.words = [
            masks.new_full((*shape, most, per_token), -1, dtype=torch.int64) for most in masks.sum(-1).amax(0).tolist()
        ]

    def observe(self, _: State, layer: int, states: Tensor) -> None:
        """Take in the residual stream at a layer, (batch, sequence, width)."""
        self._earlier[layer] = states, self._keep(states)
        gaps = [gap for gap in self._gaps if layer - gap in self._layers]
        if layer in self._layers or gaps:
            sums = [self._read(layer, k, gaps) for k in range(len(SETS))]
        if layer in self._layers:
            perceptual, textual = sums
            self._put(layer, "kl of means", perceptual.divergence_of_means(textual))
            self._put(layer, "kl of tokens", perceptual.mean_divergence(textual))
            for each, own in zip(SETS, sums, strict=True):
                self._put(layer, f"entropy {each}", -own.p_log_p / own.n)
        self._earlier.pop(layer - max(self._gaps, default=0), None)

    def _read(self, layer: int, k: int, gaps: Sequence[int]) -> _Sums:
        """Send the tokens of a set through the head, some at a time, at this layer and at those that are compared."""
        states, kept = self._earlier[layer]
        sums = _Sums.of(kept[:, k], self._vocabulary)
        before = {gap: self._earlier[layer - gap] for gap in gaps}
        totals = {gap: torch.zeros(2, len(states), dtype=torch.float64, device=states.device) for gap in gaps}
        place = kept[:, k].cumsum(1) - 1
        rows_and_columns = kept[:, k].nonzero()
        for some in rows_and_columns.split(max(1, LOGITS // self._vocabulary)):
            rows, columns = some.unbind(1)
            log_p = self._lens(states[rows, columns])
            if layer in self._layers:
                sums.add(rows, log_p)
                best = log_p.topk(self._per_token).indices
                self.words[k][rows, self._layers.index(layer), place[rows, columns]] = best
            for gap, (earlier, kept_then) in before.items():
                there = kept_then[rows, k, columns].double()
                log_then = self._lens(earlier[rows, columns])
                divergence = (log_then.exp() * (log_then - log_p)).sum(1)
                totals[gap].index_add_(1, rows, torch.stack([divergence * there, there]))
        for gap, (total, number) in totals.items():
            self._put(layer - gap, f"kl consecutive {gap} {SETS[k]}", total / number)
        return sums

    def _put(self, layer: int, name: str, values: Tensor) -> None:
        self.numbers[:, self._layers.index(layer), self._columns[name]] = values
