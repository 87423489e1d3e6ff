"""One patch on some prompts: which values of which modules are replaced, and by what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mllm.analysis.core.windows import Window
from lightning_mllm.analysis.patching.alignment import mask_patched
from lightning_mllm.analysis.patching.patch import Patch, PatchKind
from lightning_mllm.analysis.patching.source import PatchSource, count_heads
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers


@dataclass(frozen=True)
class PatchCase:
    """One patch, in a window of layers."""

    patch: Patch
    window: Window


@dataclass(frozen=True, eq=False)
class PatchEdit:
    """A patch in a window, on some prompts.

    Attributes:
        case: What is patched.
        positions: (batch, sequence) bool, where.
        source: Where the states come from.
        heads: How many attention heads each layer has.
    """

    case: PatchCase
    positions: Tensor
    source: PatchSource
    heads: int

    def acts_on(self, kind: PatchKind, layer: int) -> bool:
        """Return whether it replaces such states of a layer."""
        patch, window = self.case.patch, self.case.window
        if kind is not patch.kind or layer not in window:
            return False
        return kind is not PatchKind.HEAD or bool(patch.heads_of(layer))

    def replace(self, layer: int, values: Tensor, first: int) -> Tensor:
        """Return a layer's states with those of the source in the places of some.

        Args:
            layer: Number of the layer.
            values: (batch x repeats, rows, width); repeats of a prompt follow each other.
            first: Position of the first row; rows after the prompts' last position stay.
        """
        stop = min(first + values.shape[1], self.positions.shape[1])
        count = max(0, stop - first)
        if not count:
            return values
        repeats = len(values) // len(self.positions)
        mask = self.positions[:, first:stop, None]
        new = self.source.states[self.case.patch.kind][layer][:, first:stop]
        if self.case.patch.kind is PatchKind.HEAD:
            mask = mask & self._columns(layer, values.shape[-1], mask.device)
        mask, new = (
            each.to(values.device).repeat_interleave(repeats, dim=0) if repeats > 1 else each
            for each in (mask.to(values.device), new.to(values.device))
        )
        patched = torch.where(mask, new.to(values.dtype), values[:, :count])
        if count == values.shape[1]:
            return patched
        return torch.cat([patched, values[:, count:]], dim=1)

    def _columns(self, layer: int, width: int, device: torch.device) -> Tensor:
        """Return which of the columns are those of patched heads, (width,) bool."""
        columns = torch.zeros(self.heads, width // self.heads, dtype=torch.bool, device=device)
        columns[self.case.patch.heads_of(layer)] = True
        return columns.flatten()


def make_patch_edit(
    backbone: Backbone, batch: MultimodalBatch, source: PatchSource, case: PatchCase
) -> PatchEdit:
    """Find where a patch acts on prompts.

    Args:
        backbone: The model.
        batch: The prompts that are patched; their segments count.
        source: The other run.
        case: What is patched.

    Raises:
        ConfigError: The source lacks such states, or a layer or head does not exist.
        DataError: The batch lacks the positions of a segment.
    """
    check_patch_case(backbone, case)
    if case.patch.kind not in source.states:
        raise ConfigError(
            f"The patch '{case.patch}' takes {case.patch.kind} states, which the source does not "
            "have. Record them: PatchSource.of(backbone, batch, "
            f"[PatchKind.{case.patch.kind.name}])."
        )
    positions = mask_patched(case.patch, batch, source.batch)
    return PatchEdit(case, positions.to(backbone.model.device), source, count_heads(backbone))


def check_patch_case(backbone: Backbone, case: PatchCase) -> None:
    """Refuse layers and heads that the decoder does not have.

    Raises:
        ConfigError: It hasn't these, or heads are in other layers than those of the window.
    """
    depth, count = len(decoder_layers(backbone)), count_heads(backbone)
    patch, window = case.patch, case.window
    if not 0 <= window.start < window.stop <= depth:
        raise ConfigError(
            f"{window} can't be patched: the decoder has the layers 0 to {depth - 1}."
        )
    for layer, head in sorted(patch.heads):
        if not (0 <= layer < depth and 0 <= head < count):
            raise ConfigError(
                f"The patch '{patch}' names head {layer}.{head}, which does not exist: there are "
                f"the layers 0 to {depth - 1}, each with the heads 0 to {count - 1}."
            )
        if layer not in window:
            raise ConfigError(
                f"The patch '{patch}' names head {layer}.{head}, which is not in the window of "
                f"layers {window.start} to {window.stop - 1}. Leave the window out: heads have "
                "their own layers."
            )


def find_patch_window(patch: Patch, window: Window | None) -> Window:
    """Return the window of a patch; of heads it is that of their layers, if none is given.

    Raises:
        ConfigError: Other states have no layers of their own.
    """
    if window is not None:
        return window
    layers = [layer for layer, _ in patch.heads]
    if not layers:
        raise ConfigError(
            f"The patch '{patch}' needs the layers in which it acts. Give a window, as in "
            "Window(3, 3, 4) for layer 3."
        )
    start, stop = min(layers), max(layers) + 1
    return Window(start + (stop - start) // 2, start, stop)


def check_contrast_windows(
    contrasts: Iterable[tuple[str, str]], cases: Iterable[PatchCase]
) -> None:
    """Refuse contrasts of patches that have no window in common.

    Args:
        contrasts: Pairs of names of patches.
        cases: All that is patched.

    Raises:
        ConfigError: There is such a contrast.
    """
    windows: dict[str, set[Window]] = {}
    for case in cases:
        windows.setdefault(str(case.patch), set()).add(case.window)
    for ours, theirs in contrasts:
        if not windows[ours] & windows[theirs]:
            raise ConfigError(
                f"The contrast of {ours!r} and {theirs!r} compares nothing: no window has both. "
                "Contrast patches in the same layers."
            )
