"""Activation patching: inside the `with` statement, a run has some of another run's states.

The states that the source computed take the place of the run's own, at the positions of a patch and
in the layers of a window (Vig et al. 2020; Meng et al. 2022; best practices by Zhang and Nanda,
arXiv 2309.16042). What is patched is restored, or lost, whole: nothing is added, and no noise is
drawn. What is found is what the states *carry*, not where anything is stored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.analysis.core.windows import Window
from lightning_mllm.analysis.forward.caches import positions_of_cache
from lightning_mllm.analysis.patching.alignment import check_prompt_alignment
from lightning_mllm.analysis.patching.edits import (
    PatchCase,
    PatchEdit,
    find_patch_window,
    make_patch_edit,
)
from lightning_mllm.analysis.patching.patch import Patch, PatchKind
from lightning_mllm.analysis.patching.source import PatchSource, check_patch_model, patched_module
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import (
    Arguments,
    hook_before_call,
    hook_before_layers,
    hook_result,
    hook_stream,
)
from lightning_mllm.models.layers import decoder_layers

logger = logging.getLogger(__name__)


@contextmanager
def patching(
    backbone: Backbone,
    batch: MultimodalBatch,
    source: PatchSource,
    patch: Patch,
    window: Window | None = None,
) -> Iterator[None]:
    """Put states of another run into whatever runs the model on these prompts.

    `generate` included: tokens after the prompts keep their own states, but attend to patched ones.
    Patches nest with each other, with knockouts and with skipped computations.

    Args:
        backbone: The model.
        batch: The prompts that the model will be run on (`batch.prompts()`); row by row they have
            the same segments and positions as those of the source.
        source: The other run.
        patch: What is patched.
        window: The layers in which it is; in front of each of them for residual states. Heads have
            layers of their own.

    Raises:
        ConfigError: At once: the model is compiled, or there is no such layer, head or state. In
            the model's forward: it is run on other prompts, or rows of a layer are skipped.
        DataError: Prompts of the two runs do not correspond; the first difference is named.
    """
    if any(module._compiled_call_impl is not None for module in backbone.model.modules()):
        raise ConfigError(
            "The model is compiled, and what was compiled before would run on without the patch. "
            "Use a model that is not, or an engine, which runs the uncompiled forward."
        )
    check_patch_model(backbone, [patch.kind])
    check_prompt_alignment(batch, source.batch)
    edit = make_patch_edit(
        backbone, batch, source, PatchCase(patch, find_patch_window(patch, window))
    )
    if not edit.positions.any():
        logger.warning(
            "'%s' patches nothing in any of the %d samples: none has such a position.",
            patch,
            len(batch),
        )
    with patch_states(backbone, [edit]):
        yield


@contextmanager
def patch_states(backbone: Backbone, edits: Sequence[PatchEdit]) -> Iterator[None]:
    """Put patches into a forward of prompts, around `model.forward(...)` only."""
    patcher, layers = _PatchedForward(edits), decoder_layers(backbone)
    with ExitStack() as hooks:
        hooks.enter_context(hook_before_call(backbone.decoder, patcher.begin))
        for number, layer in enumerate(layers):
            acting = [kind for kind in PatchKind if patcher.acting(kind, number)]
            if not acting:
                continue
            hooks.enter_context(hook_before_layers({number: layer}, patcher.note))
            for kind in acting:
                function = partial(patcher.replace, kind, number)
                if kind is PatchKind.RESIDUAL:
                    hooks.enter_context(hook_stream(layer, function))
                elif kind is PatchKind.HEAD:
                    hooks.enter_context(hook_stream(patched_module(layer, kind), function))
                else:
                    module = patched_module(layer, kind)
                    hooks.enter_context(hook_result(module, partial(change_first, function)))
        yield


def change_first(function: Any, output: Any) -> Any:
    """Return a module's output, or the first of several, changed by a function."""
    if isinstance(output, tuple):
        return (function(output[0]), *output[1:])
    return function(output)


class _PatchedForward:
    """Replaces the states of a forward; rows count from what is cached."""

    def __init__(self, edits: Sequence[PatchEdit]) -> None:
        self._edits = edits
        self._first, self._rows, self._batch = 0, 0, 0

    def acting(self, kind: PatchKind, layer: int) -> list[PatchEdit]:
        """Return the patches that replace such states of a layer."""
        return [edit for edit in self._edits if edit.acts_on(kind, layer)]

    def begin(self, arguments: Arguments) -> None:
        """Find out how many positions are cached, and refuse prompts that are padded otherwise."""
        self._first = positions_of_cache(arguments.get("past_key_values"))
        mask = arguments.get("attention_mask")
        if self._first or not isinstance(mask, Tensor) or mask.ndim != 2:
            return
        for edit in self._edits:
            own = edit.source.batch.attention_mask.bool()  # as the batch's, as they correspond
            size, length = own.shape
            if len(mask) % size or mask.shape[1] < length:
                continue  # refused in `note`
            own = own.repeat_interleave(len(mask) // size, dim=0)
            if not torch.equal(mask[:, :length].bool(), own.to(mask.device)):
                raise ConfigError(
                    f"The patch is for prompts of {length} positions, but those that the model is "
                    "run on are padded in another way, so that their tokens are in other places. "
                    "Give it the batch that the model gets, its prompts()."
                )

    def note(self, _: int, hidden: Tensor, __: Arguments) -> None:
        """Note which rows enter a layer, and refuse a run on other prompts."""
        self._batch, self._rows = hidden.shape[:2]
        for edit in self._edits:
            size, length = edit.positions.shape
            if self._batch % size or (self._first < length and self._first + self._rows < length):
                raise ConfigError(
                    f"The patch is for {size} prompts of {length} positions, but the model is run "
                    f"on {self._batch} of {self._first + self._rows}. Give it the batch that the "
                    "model gets, its prompts()."
                )

    def replace(self, kind: PatchKind, layer: int, values: Tensor) -> Tensor:
        """Return states with patched ones among them."""
        if values.shape[:2] != (self._batch, self._rows):
            raise ConfigError(
                f"The {kind} states of layer {layer} are those of {tuple(values.shape[:2])} rows, "
                f"not of the {(self._batch, self._rows)} that enter it, so some are skipped. Patch "
                f"{PatchKind.RESIDUAL} states, or skip nothing there."
            )
        for edit in self.acting(kind, layer):
            values = edit.replace(layer, values, self._first)
        return values
