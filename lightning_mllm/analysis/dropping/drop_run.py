"""What is computed while visual tokens are dropped, decided for each forward and each layer.

Between layers the residual stream keeps its length, so that whatever looks at it or adds to it
(DeepStack, other edits, the head) finds each position where it is without dropping. A layer that
comes after the drop gets the rows of what is left, with their own positions and the part of its
mask that is theirs; its own code runs on them, and its cache gets their keys and values alone. A
dropped row stays as it was in front of the first of these layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.core.refusal import refusal
from lightning_mllm.analysis.dropping.drop import Drop
from lightning_mllm.analysis.dropping.ranking import choose_kept, draw_scores, score_states
from lightning_mllm.analysis.forward.attention import QueryRows, observe_attention
from lightning_mllm.analysis.forward.sample_tokens import SampleTokens, TokenPlaces
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import Arguments, Work
from lightning_mllm.models.layers import layer_hidden_value, layer_mask_dtype

_GATHERED = ("attention_mask", "position_embeddings", "position_ids")
_OF_ALL_ROWS = ("cache_position",)  # says nothing to a cache that grows


@dataclass(frozen=True)
class ColumnCut:
    """What is left of the positions of a prompt pass.

    Attributes:
        left: (batch, sequence) bool, the positions that are left; padding is not.
    """

    left: Tensor

    @cached_property
    def columns(self) -> Tensor:
        """(batch, most) the positions that are left, in order; others fill a row that has fewer."""
        most = max(1, int(self.left.sum(1).max()))
        return self.left.int().argsort(dim=1, stable=True)[:, -most:].sort(dim=1).values

    @cached_property
    def valid(self) -> Tensor:
        """(batch, most) bool, which of the columns are left, and do not only fill the row."""
        return self.left.gather(1, self.columns)

    @cached_property
    def fills(self) -> bool:
        """Whether any row is filled."""
        return not bool(self.valid.all())

    def gather_rows(self, values: Tensor) -> Tensor:
        """Return (..., batch, most, width) of (..., batch or 1, sequence, width) values."""
        leading, width = values.shape[:-3], values.shape[-1]
        index = self.columns[..., None].expand(*leading, -1, -1, width)
        return values.expand(*leading, len(self.columns), -1, -1).gather(-2, index)

    def scatter_rows(self, rows: Tensor, over: Tensor) -> Tensor:
        """Put (batch, most, width) rows into (batch, sequence, width); what fills a row stays."""
        rows = rows.to(over.dtype).where(self.valid[..., None], self.gather_rows(over))
        return over.scatter(1, self.columns[..., None].expand_as(rows), rows)

    def cut_mask(self, given: Tensor | None, hidden: Tensor, past: int) -> Tensor | None:
        """Return the mask that a layer gets instead of its own; None if it is as simple.

        Args:
            given: The layer's own, (batch or 1, heads or 1, rows, keys); None means causal.
            hidden: (batch, rows, width), what enters the layer.
            past: How many positions were run before: none, or the prompt pass and more.
        """
        if given is None and not self.fills:
            return None
        batch, count = hidden.shape[:2]
        dtype, keys = layer_mask_dtype(hidden), past + count
        if given is None:
            every = torch.ones(count, keys, dtype=torch.bool, device=hidden.device)
            given = every.tril(past)[None, None]
        if given.dtype == torch.bool:
            additive = torch.zeros(given.shape, dtype=dtype, device=given.device)
            given = additive.masked_fill_(~given, layer_hidden_value(dtype))
        mask = given.expand(batch, -1, -1, -1)
        if not past:
            index = self.columns[:, None, :, None]
            mask = mask.gather(2, index.expand(-1, mask.shape[1], -1, keys))
        after = torch.arange(self.left.shape[1], keys, device=hidden.device).expand(batch, -1)
        columns = torch.cat([self.columns, after], dim=1)[:, None, None]
        mask = mask.gather(3, columns.expand(-1, *mask.shape[1:3], -1))
        hides = nn.functional.pad(~self.valid, (0, after.shape[1]))
        return mask.masked_fill(hides[:, None, None], layer_hidden_value(dtype))


class DropRun:
    """Decides what the layers compute instead; `begin` must be called before each decoder pass.

    Args:
        backbone: The model.
        drop: What is dropped.
        forwards: Layer that is touched -> its own forward.
        first: The first layer without the tokens.
        tokens: The samples that the model is run on.
    """

    def __init__(
        self,
        backbone: Backbone,
        drop: Drop,
        forwards: Mapping[int, Callable[..., Tensor]],
        first: int,
        tokens: SampleTokens,
    ) -> None:
        self._backbone, self._drop, self._forwards = backbone, drop, forwards
        self._first, self._tokens = first, tokens
        self._places = TokenPlaces("dropping", tokens)
        self._cut: ColumnCut | None = None  # of the last prompt pass
        self._weights: Tensor | None = None  # (batch, sequence), of its last rows
        # of this forward: the layers' own mask, which is held so that no other has its id, and ours
        self._masks: dict[int, tuple[Tensor | None, Tensor | None]] = {}

    def begin(self, arguments: Arguments) -> None:
        """Find out which tokens the decoder is run on."""
        self._places.begin(arguments)
        self._masks.clear()
        if not self._places.past:
            self._cut = self._weights = None
            return
        batch, known = len(self._places.numbers), self._cut
        if known is None or self._places.past < known.left.shape[1] or len(known.left) != batch:
            raise ConfigError(
                "Tokens are dropped from the keys and values of a pass over the whole prompts, but "
                f"the model continues from {self._places.past} positions of {batch} sequences that "
                "are not of such a pass. Run the prompts within the `with` block too, in one go."
            )

    def work(self, index: int, layer: nn.Module, hidden: Tensor, others: Arguments) -> Work | None:
        """Return what a layer computes instead; None for its own work."""
        own, prompts = self._forwards[index], not self._places.past
        if index < self._first:
            return partial(self._look, index, own, others) if prompts else None
        if prompts and self._cut is None:
            self._cut = ColumnCut(self._choose(hidden))
        cut = self._cut
        assert cut is not None  # `begin` has checked
        if not self._drops(cut):
            return None
        changed = {**others, "attention_mask": self._mask(others.get("attention_mask"), hidden)}
        if not prompts:
            return partial(own, **changed)
        self._check_arguments(others)
        rotary = others.get("position_embeddings")
        if rotary is not None:
            changed["position_embeddings"] = tuple(map(cut.gather_rows, rotary))
        if (places := others.get("position_ids")) is not None:
            changed["position_ids"] = cut.gather_rows(places[..., None]).squeeze(-1)
        return lambda stream: cut.scatter_rows(own(cut.gather_rows(stream), **changed), stream)

    def _drops(self, cut: ColumnCut) -> bool:
        """Return whether a token was dropped in the prompt pass."""
        length = cut.left.shape[1]
        return bool(((self._places.numbers[:, :length] >= 0) & ~cut.left).any())

    def _look(
        self, index: int, own: Callable[..., Tensor], others: Arguments, hidden: Tensor
    ) -> Tensor:
        """Run the layer before, and keep the attention weights of the prompts' last positions."""
        last = (self._places.numbers == self._places.lengths - 1).int().argmax(1, keepdim=True)
        rows = QueryRows(last, torch.ones_like(last, dtype=torch.bool), hidden.shape[1])

        def keep(_: int, weights: Tensor) -> None:
            self._weights = weights.detach().mean(1)[:, 0].to(hidden.device)

        with observe_attention(self._backbone, rows, keep, [index]):
            return own(hidden, **others)

    def _choose(self, hidden: Tensor) -> Tensor:
        """Return which positions are left, (batch, sequence) bool."""
        drop, places = self._drop, self._places
        visual = places.gather_prompt(self._tokens.perceptual)
        if drop.choice == "random":
            scores = places.gather_prompt(draw_scores(self._tokens, drop))
        elif drop.choice == "attention":
            assert self._weights is not None  # the layer before has run
            scores = self._weights
        elif drop.choice == "stride":
            scores = torch.zeros_like(visual, dtype=torch.float32)
        else:
            scores = score_states(drop, visual, hidden)
        return (places.numbers >= 0) & (~visual | choose_kept(drop, visual, scores))

    def _mask(self, given: Tensor | None, hidden: Tensor) -> Tensor | None:
        """Return the mask of what is left, made once for all layers with the same own one."""
        if id(given) not in self._masks:
            assert self._cut is not None
            self._masks[id(given)] = (
                given,
                self._cut.cut_mask(given, hidden, self._places.past),
            )
        return self._masks[id(given)][1]

    def _check_arguments(self, others: Mapping[str, Any]) -> None:
        """Refuse a layer that gets something else for each row, which would not be cut."""
        for name, value in others.items():
            if isinstance(value, Tensor) and name not in (*_GATHERED, *_OF_ALL_ROWS):
                raise refusal(
                    self._backbone,
                    "Dropping tokens",
                    f"its layers also get {name!r}, of which it is not known whose rows it has",
                    "Use a model of another family.",
                )
