"""Only the rows that an edit can change, in the layers where it can; all else is the clean run's.

All variants of a prompt stand in one row, each after the clean prefix, and none attends to another.
In front of them are the same rows with nothing hidden, of which each variant is a copy until its
window begins. In the layers of its window, a variant has fewer visible keys than drawn here:

```
             clean prefix   unblocked   variant 1   variant 2
 unblocked | ■ ■ ■ ■ ■ ■    ■ . .       . . .       . . .
           | ■ ■ ■ ■ ■ ■    ■ ■ .       . . .       . . .
           | ■ ■ ■ ■ ■ ■    ■ ■ ■       . . .       . . .
 variant 1 | ■ ■ ■ ■ ■ ■    . . .       ■ . .       . . .
           | ■ ■ ■ ■ ■ ■    . . .       ■ ■ .       . . .
```

What half precision rounds differently from the clean run is then rounded alike in both, and their
difference is due to what is hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.core.windows import Window
from lightning_mllm.analysis.forward.hidden_keys import HiddenKeys
from lightning_mllm.analysis.forward.suffix.clean_run import CleanRun, CleanRunPrefix
from lightning_mllm.models.layers import layer_hidden_value, layer_mask_dtype


@dataclass(frozen=True)
class RowVariant:
    """Keys that are hidden in the layers of a window, on some prompts."""

    hidden: HiddenKeys
    window: Window


def run_rows(
    layers: Sequence[nn.Module], clean: CleanRun, start: int, variants: Sequence[RowVariant]
) -> Tensor:
    """Return what leaves the last layer at the last position, first with nothing hidden.

    Args:
        layers: The decoder's.
        clean: The run with nothing hidden.
        start: The first position whose row is computed: at or before the first target of each
            variant.
        variants: Ordered by the first layer of their windows.

    Returns:
        (batch, 1 + variants, width).
    """
    first = variants[0].window
    masks = _Masks(clean, start, [RowVariant(HiddenKeys.nothing(clean.real), first), *variants])
    # (batch, 1 + variants so far, rows, width)
    hidden = clean.residuals[first.start][:, None, start - clean.tail :]
    for index in range(first.start, len(layers)):
        joining = sum(each.window.start == index for each in variants)
        hidden = torch.cat([hidden, hidden[:, :1].expand(-1, joining, -1, -1)], dim=1)
        batch, count, rows, width = hidden.shape
        columns = torch.arange(start, start + rows, device=hidden.device).repeat(count)
        arguments = clean.arguments_at(index, columns) | {
            "attention_mask": masks.at(index, count, layer_mask_dtype(hidden)),
            "past_key_values": CleanRunPrefix(clean, start),
            "use_cache": True,
        }
        output = layers[index](hidden.reshape(batch, count * rows, width), **arguments)
        output = output[0] if isinstance(output, tuple) else output
        hidden = output.view(batch, count, rows, width)
        if index in clean.between:
            hidden = hidden + clean.between[index][:, None, start - clean.tail :]
    return hidden[:, :, -1]


class _Masks:
    """The additive mask of each layer, made again only where a variant joins or a window ends."""

    def __init__(self, clean: CleanRun, start: int, variants: Sequence[RowVariant]) -> None:
        hidden = [each.hidden for each in variants]
        self._windows = [each.window for each in variants]
        self._start, self._real, self._horizon = start, clean.real, clean.horizon
        # (batch, variants, sequence), and (batch, variants, rows)
        self._source = torch.stack([keys.source for keys in hidden], dim=1)
        self._target = torch.stack([keys.target for keys in hidden], dim=1)[..., start:]
        self._heads: Tensor | None = None  # (variants, layers, heads)
        self._patterns: list[Any] = []  # layer -> which heads of each variant
        some = next((keys.heads for keys in hidden if keys.heads is not None), None)
        if some is not None:
            every = torch.ones_like(some)
            self._heads = torch.stack([every if h.heads is None else h.heads for h in hidden])
            self._patterns = self._heads.transpose(0, 1).tolist()
        self._last: tuple[tuple[Any, ...], Tensor] | None = None

    def at(self, layer: int, count: int, dtype: torch.dtype) -> Tensor:
        """Return the first `count` variants' mask, (batch, 1 or heads, rows, prefix + rows)."""
        on = tuple(layer in window for window in self._windows[:count])
        key = (on, self._patterns[layer][:count] if self._patterns else None)
        if self._last is None or self._last[0] != key:
            visible = self._visible(on, layer)
            mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            self._last = key, mask.masked_fill_(~visible, layer_hidden_value(dtype))
        return self._last[1]

    def _visible(self, on: tuple[bool, ...], layer: int) -> Tensor:
        """Return which keys are visible where the first variants hide theirs, or do not."""
        count, rows = len(on), self._target.shape[2]
        hiding = torch.tensor(on, device=self._target.device)[:, None]
        source = self._source[:, :count] & hiding
        # (batch, variants, rows, sequence)
        pairs = self._target[:, :count, :, None] & source[:, :, None]
        pairs = pairs[:, None]
        if self._heads is not None:
            pairs = pairs & self._heads[:count, layer].T[..., None, None]
        keys = torch.arange(self._real.shape[1], device=source.device)
        horizon = keys.expand_as(self._real) if self._horizon is None else self._horizon
        within = keys <= horizon[:, self._start :, None]  # (batch, rows, sequence)
        within &= self._real[:, None]
        # (batch, 1 or heads, variants, rows, sequence)
        visible = ~pairs & within[:, None, None]
        prefix, own = visible[..., : self._start].flatten(2, 3), visible[..., self._start :]
        apart = own.new_zeros(*own.shape[:3], rows, count, rows)
        index = torch.arange(count, device=own.device)
        apart[:, :, index, :, index] = own.permute(2, 0, 1, 3, 4)
        return torch.cat([prefix, apart.flatten(4, 5).flatten(2, 3)], dim=3)
