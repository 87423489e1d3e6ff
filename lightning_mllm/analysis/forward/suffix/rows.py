"""Only the rows that a block can change: from the window's first layer on, behind the clean keys and values.

All variants of a prompt stand in one row, each behind the clean prefix, and none sees another. In front of them are the
same rows with nothing hidden, of which each variant is a copy until its window begins:

```
             clean prefix   unblocked   variant 1   variant 2
 unblocked | ■ ■ ■ ■ ■ ■    ■ . .       . . .       . . .
           | ■ ■ ■ ■ ■ ■    ■ ■ .       . . .       . . .
           | ■ ■ ■ ■ ■ ■    ■ ■ ■       . . .       . . .
 variant 1 | ■ ■ ■ ■ ■ ■    . . .       ■ . .       . . .       in a window's layers the block takes some away
           | ■ ■ ■ ■ ■ ■    . . .       ■ ■ .       . . .
```

So what is rounded otherwise than in the clean run, in half precision, is rounded alike in both, and their difference is
the block's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.core.windows import Window
from lightning_mllm.analysis.forward.suffix.clean_run import CleanPrefix, CleanRun
from lightning_mllm.models.layers import hidden_value, mask_dtype


@dataclass(frozen=True)
class Variant:
    """One case on some prompts.

    Attributes:
        source: (batch, sequence).
        target: (batch, sequence).
        heads: (heads,) bool, or None for all.
        window: The layers.
    """

    source: Tensor
    target: Tensor
    heads: Tensor | None
    window: Window


def run_rows(layers: Sequence[nn.Module], clean: CleanRun, start: int, variants: Sequence[Variant]) -> Tensor:
    """Return what leaves the last layer at the last position, (batch, 1 + variants, width), first with nothing hidden.

    Args:
        layers: The decoder's.
        clean: The run without a block.
        start: The first position whose row is computed: at or before the first target of each variant.
        variants: Ordered by the first layer of their windows.
    """
    first = variants[0].window
    nothing = torch.zeros_like(clean.real)
    masks = _Masks(clean, start, [Variant(nothing, nothing, None, first), *variants])
    hidden = clean.residuals[first.start][:, None, start - clean.tail :]  # (batch, 1 + variants so far, rows, width)
    for index in range(first.start, len(layers)):
        joining = sum(each.window.start == index for each in variants)
        hidden = torch.cat([hidden, hidden[:, :1].expand(-1, joining, -1, -1)], dim=1)
        batch, count, rows, width = hidden.shape
        columns = torch.arange(start, start + rows, device=hidden.device).repeat(count)
        output = layers[index](
            hidden.reshape(batch, count * rows, width),
            **clean.arguments_at(index, columns)
            | {
                "attention_mask": masks.at(index, count, mask_dtype(hidden)),
                "past_key_values": CleanPrefix(clean, start),
                "use_cache": True,
            },
        )
        hidden = (output[0] if isinstance(output, tuple) else output).view(batch, count, rows, width)
    return hidden[:, :, -1]


class _Masks:
    """The additive mask of each layer, made anew only where a variant joins or a window ends."""

    def __init__(self, clean: CleanRun, start: int, variants: Sequence[Variant]) -> None:
        self._windows = [each.window for each in variants]
        self._start, self._real = start, clean.real
        self._source = torch.stack([each.source for each in variants], dim=1)  # (batch, variants, sequence)
        self._target = torch.stack([each.target for each in variants], dim=1)[..., start:]
        self._heads: Tensor | None = None  # (variants, heads)
        if any(each.heads is not None for each in variants):
            some = next(each.heads for each in variants if each.heads is not None)
            every = torch.ones_like(some)
            self._heads = torch.stack([every if each.heads is None else each.heads for each in variants])
        self._last: tuple[tuple[bool, ...], Tensor] | None = None

    def at(self, layer: int, count: int, dtype: torch.dtype) -> Tensor:
        """Return the mask for the first `count` variants, (batch, 1 or heads, rows, prefix + rows)."""
        on = tuple(layer in window for window in self._windows[:count])
        if self._last is None or self._last[0] != on:
            seen = self._seen(on)
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self._last = on, mask.masked_fill_(~seen, hidden_value(dtype))
        return self._last[1]

    def _seen(self, on: tuple[bool, ...]) -> Tensor:
        count, rows = len(on), self._target.shape[2]
        blocked = torch.tensor(on, device=self._target.device)[:, None]
        source = self._source[:, :count] & blocked
        pairs = self._target[:, :count, :, None] & source[:, :, None]  # (batch, variants, rows, sequence)
        pairs = pairs[:, None] if self._heads is None else pairs[:, None] & self._heads[:count].T[..., None, None]
        causal = torch.ones(rows, self._real.shape[1], dtype=torch.bool, device=source.device).tril(self._start)
        seen = ~pairs & causal & self._real[:, None, None, None]  # (batch, 1 or heads, variants, rows, sequence)
        prefix, own = seen[..., : self._start].flatten(2, 3), seen[..., self._start :]
        apart = own.new_zeros(*own.shape[:3], rows, count, rows)
        index = torch.arange(count, device=own.device)
        apart[:, :, index, :, index] = own.permute(2, 0, 1, 3, 4)
        return torch.cat([prefix, apart.flatten(4, 5).flatten(2, 3)], dim=3)
