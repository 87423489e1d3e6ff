"""What the words of one batch's states come to, sample by sample, collected layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mllm.analysis.core.token_sets import SETS
from lightning_mllm.analysis.forward.observe import ObservedState

# (tokens, width) -> log-probabilities in float64, (tokens, vocabulary)
Lens = Callable[[Tensor], Tensor]
# states, (batch, sequence, width) -> which count, (batch, sets, sequence) bool
Keep = Callable[[Tensor], Tensor]


def word_measure_names(gaps: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the numbers that each sample has per layer, all in nats."""
    names = ["kl of means", "kl of tokens"]
    names += [f"entropy {each}" for each in SETS]
    for gap in gaps:
        names += [f"kl consecutive {gap} {each}" for each in SETS]
    return tuple(names)


@dataclass(frozen=True, eq=False)
class _DistributionSums:
    """Sums over the distributions p of each sample's tokens of a set.

    Attributes:
        n: (batch,), how many.
        p: (batch, vocabulary), sums of p.
        log_p: (batch, vocabulary), sums of ln p.
        p_log_p: (batch,), sums of p . ln p.
    """

    n: Tensor
    p: Tensor
    log_p: Tensor
    p_log_p: Tensor

    @classmethod
    def of(cls, kept: Tensor, vocabulary: int) -> _DistributionSums:
        """Return zeros for (batch, sequence) tokens."""
        zeros = torch.zeros(len(kept), vocabulary, dtype=torch.float64, device=kept.device)
        return cls(kept.sum(1).double(), zeros, zeros.clone(), zeros.new_zeros(len(kept)))

    def add(self, rows: Tensor, log_p: Tensor) -> None:
        """Add (tokens, vocabulary) distributions of samples, (tokens,)."""
        p = log_p.exp()
        self.p.index_add_(0, rows, p)
        self.log_p.index_add_(0, rows, log_p)
        self.p_log_p.index_add_(0, rows, (p * log_p).sum(1))

    def divergence_of_means(self, other: _DistributionSums) -> Tensor:
        """Return KL of the mean distributions, (batch,)."""
        mine, theirs = self.p / self.n[:, None], other.p / other.n[:, None]
        tiny = torch.finfo(torch.float64).tiny  # what is rarer has underflowed
        return (mine * (mine.clamp(min=tiny).log() - theirs.clamp(min=tiny).log())).sum(1)

    def mean_divergence(self, other: _DistributionSums) -> Tensor:
        """Return the mean KL of all pairs of tokens, (batch,).

        It is mean p . ln p - (mean p) . (mean ln q).
        """
        return (self.p_log_p - (self.p * other.log_p).sum(1) / other.n) / self.n


class WordMeasures:
    """Observes the states of a batch; see `observe_stream`.

    Args:
        lens: From states to distributions.
        keep: Which tokens count.
        masks: (batch, sets, sequence) bool, a superset of the tokens that count.
        layers: At which the lens is put.
        gaps: Layers between two at which the same token is compared.
        vocabulary: Number of words.
        per_token: How many of the likeliest words of each token are kept.
        at_once: How many tokens go through the lens at a time.
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
        at_once: int,
    ) -> None:
        self._lens, self._keep, self._layers, self._gaps = lens, keep, layers, gaps
        self._vocabulary, self._per_token, self._at_once = vocabulary, per_token, at_once
        self._earlier: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> states, and which count
        self._columns = {name: k for k, name in enumerate(word_measure_names(gaps))}
        shape = (len(masks), len(layers), len(self._columns))
        self.numbers = masks.new_full(shape, torch.nan, dtype=torch.float64)
        self.words = []  # per set, (batch, layers, tokens, per token)
        for most in masks.sum(-1).amax(0).tolist():
            words_shape = (len(masks), len(layers), most, per_token)
            self.words.append(masks.new_full(words_shape, -1, dtype=torch.int64))

    def observe(self, _: ObservedState, layer: int, states: Tensor) -> None:
        """Take in the residual stream at a layer, (batch, sequence, width)."""
        self._earlier[layer] = states, self._keep(states)
        gaps = [gap for gap in self._gaps if layer - gap in self._layers]
        if layer in self._layers or gaps:
            sums = [self._add_up(layer, number, gaps) for number in range(len(SETS))]
        if layer in self._layers:
            perceptual, textual = sums
            self._put(layer, "kl of means", perceptual.divergence_of_means(textual))
            self._put(layer, "kl of tokens", perceptual.mean_divergence(textual))
            for each, own in zip(SETS, sums, strict=True):
                self._put(layer, f"entropy {each}", -own.p_log_p / own.n)
        self._earlier.pop(layer - max(self._gaps, default=0), None)

    def _add_up(self, layer: int, number: int, gaps: Sequence[int]) -> _DistributionSums:
        """Send the tokens of a set through the head, some at a time.

        This is done at this layer, and at the earlier ones with which it is compared.

        Args:
            layer: Index of the residual stream.
            number: Which of the sets.
            gaps: How many layers earlier those are.
        """
        states, kept = self._earlier[layer]
        sums = _DistributionSums.of(kept[:, number], self._vocabulary)
        totals = {}
        for gap in gaps:
            totals[gap] = torch.zeros(2, len(states), dtype=torch.float64, device=states.device)
        within_set = kept[:, number].cumsum(1) - 1
        for some in kept[:, number].nonzero().split(self._at_once):
            rows, columns = some.unbind(1)
            log_p = self._lens(states[rows, columns])
            if layer in self._layers:
                sums.add(rows, log_p)
                best = log_p.topk(self._per_token).indices
                index = self._layers.index(layer)
                self.words[number][rows, index, within_set[rows, columns]] = best
            for gap, total in totals.items():
                earlier, kept_then = self._earlier[layer - gap]
                there = kept_then[rows, number, columns].double()
                log_then = self._lens(earlier[rows, columns])
                divergence = (log_then.exp() * (log_then - log_p)).sum(1)
                total.index_add_(1, rows, torch.stack([divergence * there, there]))
        for gap, (total, count) in totals.items():
            self._put(layer - gap, f"kl consecutive {gap} {SETS[number]}", total / count)
        return sums

    def _put(self, layer: int, name: str, values: Tensor) -> None:
        self.numbers[:, self._layers.index(layer), self._columns[name]] = values
