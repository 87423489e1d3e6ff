"""Attribution patching: all effects of patches estimated from one gradient per direction.

An effect is estimated as the sum, over patched positions and the width, of (source - base) times
the derivative of D by the base run's state (Nanda, "Attribution patching", 2023). That is two
forward passes and a backward pass per direction, for all patches and windows. Where softmax and
norms saturate, as where a whole answer turns round, this first order is far off for a single pair,
and worth no more than an order of the cells (Kramar et al., AtP*, arXiv 2403.00745).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.analysis.forward.prompts import Prompts
from lightning_mllm.analysis.patching.edits import PatchCase, PatchEdit
from lightning_mllm.analysis.patching.engine.base import PromptPair, find_patch_kinds
from lightning_mllm.analysis.patching.patch import PatchKind
from lightning_mllm.analysis.patching.patching import change_first
from lightning_mllm.analysis.patching.source import (
    PatchSource,
    count_heads,
    patched_module,
    record_states,
)
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import hook_result, hook_stream
from lightning_mllm.models.layers import decoder_layers

Key = tuple[PatchKind, int]


@torch.inference_mode(False)  # within which no gradient can be asked for
def estimate_patches(
    backbone: Backbone,
    clean: MultimodalBatch,
    corrupted: MultimodalBatch,
    cases: Sequence[PatchCase],
    ids: Tensor,
) -> Tensor:
    """Return by how much each patch is estimated to change D, (2, batch, cases).

    Residual states are patched in front of the first layer of a window; in the others they would
    only be overwritten by themselves.

    Args:
        backbone: The model, in eval mode.
        clean: Samples, whose segments say where patches are.
        corrupted: Their partners.
        cases: What is patched.
        ids: (batch, 2), the tokens of the clean and of the corrupted answer.
    """
    with torch.no_grad():
        pair = PromptPair(Prompts.of(backbone, clean), Prompts.of(backbone, corrupted))
    kinds, positions, heads = find_patch_kinds(cases), pair.positions(cases), count_heads(backbone)
    ids = ids.to(backbone.model.device).clone()
    found = []
    for base, other in pair.directions:
        with torch.no_grad(), record_states(backbone, kinds) as states:
            logits, _ = other.forward(backbone)
        source = PatchSource(other.batch, states, logits)
        own, gradients = _find_gradients(backbone, base, kinds, ids)
        estimates = []
        for case, mask in zip(cases, positions, strict=True):
            edit = PatchEdit(case, mask, source, heads)
            total = torch.zeros(len(mask), device=mask.device)
            for layer in _layers_of(case):
                key = case.patch.kind, layer
                if edit.acts_on(*key):
                    change = edit.replace(layer, own[key], 0) - own[key]
                    total = total + (change.float() * gradients[key].float()).sum((1, 2))
            estimates.append(total)
        found.append(torch.stack(estimates, dim=1))
    return torch.stack(found)


def _layers_of(case: PatchCase) -> range:
    """Return the layers in which a patch changes something that it has not changed before."""
    start, stop = case.window.start, case.window.stop
    return range(start, start + 1 if case.patch.kind is PatchKind.RESIDUAL else stop)


def _find_gradients(
    backbone: Backbone, prompts: Prompts, kinds: Sequence[PatchKind], ids: Tensor
) -> tuple[dict[Key, Tensor], dict[Key, Tensor]]:
    """Return the states of a run, and the derivative of D by each, (batch, sequence, width)."""
    states: dict[Key, Tensor] = {}

    def note(key: Key, values: Tensor) -> Tensor:
        if not values.requires_grad:  # what enters the first layer of a model that is not trained
            values = values.detach().clone().requires_grad_()
        states[key] = values
        return values

    with torch.enable_grad(), ExitStack() as hooks:
        for number, layer in enumerate(decoder_layers(backbone)):
            for kind in dict.fromkeys((PatchKind.RESIDUAL, *kinds)):
                function = partial(note, (kind, number))
                if kind is PatchKind.RESIDUAL:
                    hooks.enter_context(hook_stream(layer, function))
                elif kind is PatchKind.HEAD:
                    hooks.enter_context(hook_stream(patched_module(layer, kind), function))
                else:
                    changed: Any = partial(change_first, function)
                    hooks.enter_context(hook_result(patched_module(layer, kind), changed))
        logits, _ = prompts.forward(backbone)
        read = logits.gather(1, ids)
        gradients = torch.autograd.grad((read[:, 0] - read[:, 1]).sum(), list(states.values()))
    values = {key: each.detach() for key, each in states.items()}
    return values, dict(zip(states, gradients, strict=True))
