"""Rows whose states are edited on their way through the layers, each edit on rows of its own.

Unlike in `rows`, edits stand one after the other in the batch, and each has keys of its own: rows
are many where patches of an image are edited. The keys and values before the first row are those of
a run in which these rows are what the edit makes of them: the edited run itself or, where a whole
beginning is exchanged, the run that it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.forward.suffix.clean_run import CleanRun
from lightning_mllm.models.layers import layer_hidden_value, layer_mask_dtype


def run_edited_rows(
    layers: Sequence[nn.Module],
    base: CleanRun,
    *,
    before: CleanRun,
    start: int,
    firsts: Sequence[int],
    edit: Callable[[int, Tensor], Tensor],
) -> Tensor:
    """Return what leaves the last layer at the last position, of each edit.

    Args:
        layers: The decoder's.
        base: The run that is edited.
        before: The run that has keys and values of the rows before `start`.
        start: The first position whose row is computed.
        firsts: For each edit, the first layer in which it acts, in order.
        edit: Gets the number of a layer and what enters it, (edits so far x batch, rows, width),
            the prompts of an edit one after the other; returns what enters it instead.

    Returns:
        (edits, batch, width).
    """
    batch, length = base.real.shape
    columns = torch.arange(start, length, device=base.real.device)
    hidden = base.residuals[firsts[0]][:0, start - base.tail :]
    mask = _find_mask(base, start, layer_mask_dtype(hidden))
    for index in range(firsts[0], len(layers)):
        if joining := sum(first == index for first in firsts):
            own = base.residuals[index][:, start - base.tail :]
            hidden = torch.cat([hidden, own.repeat(joining, 1, 1)])
        hidden = edit(index, hidden)
        count = len(hidden) // batch
        arguments = base.arguments_at(index, columns)
        arguments = {name: _repeat(each, batch, count) for name, each in arguments.items()}
        arguments |= {
            "attention_mask": _repeat(mask, batch, count),
            "past_key_values": _RepeatedPrefix(before, start, count),
            "use_cache": True,
        }
        output = layers[index](hidden, **arguments)
        hidden = output[0] if isinstance(output, tuple) else output
        if index in base.between:
            hidden = hidden + base.between[index][:, start - base.tail :].repeat(count, 1, 1)
    return hidden[:, -1].view(len(firsts), batch, -1)


@dataclass(frozen=True)
class _RepeatedPrefix:
    """A layer's cache: keys and values of the first positions, the same for each edit."""

    before: CleanRun
    length: int
    count: int

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the keys and values that the rows attend to; nothing is kept."""
        return (
            self._join(self.before.keys[layer], keys),
            self._join(self.before.values[layer], values),
        )

    def get_seq_length(self, layer: int = 0) -> int:
        """Return the number of positions before the rows."""
        return self.length

    def _join(self, whole: Tensor, own: Tensor) -> Tensor:
        prefix = whole[None, :, :, : self.length].expand(self.count, -1, -1, -1, -1)
        return torch.cat([prefix.flatten(0, 1), own], dim=2)


def _find_mask(base: CleanRun, start: int, dtype: torch.dtype) -> Tensor:
    """Return the additive mask of rows from a position on, (batch, 1, rows, sequence)."""
    keys = torch.arange(base.real.shape[1], device=base.real.device)
    horizon = keys.expand_as(base.real) if base.horizon is None else base.horizon
    visible = (keys <= horizon[:, start:, None]) & base.real[:, None]
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, layer_hidden_value(dtype))[:, None]


def _repeat(value: Any, batch: int, count: int) -> Any:
    """Return a layer's argument for several edits: those with a row per prompt are repeated."""
    if isinstance(value, tuple):
        return tuple(_repeat(each, batch, count) for each in value)
    if isinstance(value, Tensor) and batch > 1 and len(value) == batch:
        return value.repeat(count, *[1] * (value.ndim - 1))
    return value
