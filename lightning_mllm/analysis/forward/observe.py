"""Shows the states of a batch as they come out of the LLM, layer by layer; none is kept.

Index 0 of the residual stream is what enters the first layer, index l what leaves layer l and
enters the next, un-normed. This holds for the last layer too, of which `output_hidden_states` gives
the normed state only. Inside layer l, counted from 1, are the states that are not in the residual
stream yet (Shukor and Cord, arXiv 2405.16700, section 3):

    X' = X + SA(LN1(X));  next X = X' + FC2(FC1(LN2(X')))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from enum import StrEnum
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.core.refusal import refusal
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import hook_before_layers, hook_inputs, hook_outputs, hook_stream
from lightning_mllm.models.layers import (
    decoder_layers,
    layers_and_norm,
    run_layers_uncompiled,
    scale_added,
)


class ObservedState(StrEnum):
    """Where in a layer of the LLM a state is."""

    RESIDUAL = "residual"
    LN1 = "LN1"  # the normed stream, as attention gets it
    SA = "SA"  # what attention adds
    LN2 = "LN2"  # the normed stream, as the FFN gets it
    FC1 = "FC1"  # the FFN's inner units, of its inner width
    FC2 = "FC2"  # what the FFN adds


StateName = Literal["residual", "LN1", "SA", "LN2", "FC1", "FC2"]
Observe = Callable[[ObservedState, int, Tensor], None]

_MODULES = {
    ObservedState.LN1: "input_layernorm",
    ObservedState.SA: "self_attn",
    ObservedState.LN2: "post_attention_layernorm",
    ObservedState.FC1: "mlp.down_proj",  # what enters it
    ObservedState.FC2: "mlp",
}
_ADDED = (ObservedState.SA, ObservedState.FC2)
_PARTS = {name.partition(".")[0] for name in _MODULES.values()}


def observe_states(names: Sequence[str]) -> tuple[ObservedState, ...]:
    """Return the states of these names.

    Raises:
        ConfigError: A name is unknown, or comes twice.
    """
    known = set(ObservedState)
    if len(set(names)) < len(names) or not known.issuperset(names):
        raise ConfigError(
            f"States are {', '.join(names)}; each can be one of {', '.join(ObservedState)}, once."
        )
    return tuple(map(ObservedState, names))


def check_observed_states(backbone: Backbone, states: Sequence[ObservedState]) -> None:
    """Refuse states that are asked for inside layers which have other modules.

    Raises:
        ConfigError: There is such a state.
    """
    inside = [state for state in states if state is not ObservedState.RESIDUAL]
    for layer in decoder_layers(backbone) if inside else ():
        parts = {name for name, _ in layer.named_children()}
        if parts != _PARTS:
            raise refusal(
                backbone,
                f"Looking at {', '.join(inside)} inside layers",
                f"these states are known where a layer has {', '.join(sorted(_PARTS))}, as those "
                f"of Llama, Mistral and Qwen2; a {type(layer).__name__} has "
                f"{', '.join(sorted(parts))}",
                f"Ask for {ObservedState.RESIDUAL!s} states only.",
            )


@torch.no_grad()
def observe_stream(
    backbone: Backbone,
    batch: MultimodalBatch,
    states: Sequence[ObservedState],
    observe: Observe,
    enter: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Run the LLM once over a batch, and show its states; layers come in order.

    Args:
        backbone: The model.
        batch: What it is run on.
        states: Which are shown.
        observe: Gets the state, its layer and its values, (batch, sequence, width). Autocast is off
            while it runs.
        enter: Makes what enters the first layer of what would enter it without `enter`,
            (batch, sequence, width) each.

    Raises:
        ConfigError: States inside layers are asked for, and the layers have other modules.
        DataError: States of a sample are not finite.
    """
    check_observed_states(backbone, states)
    layers = decoder_layers(backbone)

    def check(_: int, leaving: Tensor, __: Any) -> None:  # what is not finite stays so
        broken = (~leaving.isfinite().all(-1) & batch.attention_mask.bool()).any(1)
        if rows := broken.nonzero()[:, 0].tolist():
            raise DataError(
                f"The LLM's states of sample {batch.sample_ids[rows[0]]!r} are not finite. Load "
                "the model in bfloat16 or float32."
            )

    def show(key: tuple[ObservedState, int], values: Tensor) -> None:
        state, layer = key
        if state in _ADDED:
            values = scale_added(layers[layer - 1], values)
        values = values.to(backbone.model.device)  # inside a layer, they are where it computes
        with torch.autocast(values.device.type, enabled=False):
            observe(state, layer, values)

    def show_stream(layer: int, values: Tensor, _: Any) -> None:
        show((ObservedState.RESIDUAL, layer), values)

    with ExitStack() as hooks:
        if enter is not None:
            hooks.enter_context(hook_stream(layers[0], enter))
        entered = dict(enumerate(layers_and_norm(backbone)))
        hooks.enter_context(hook_before_layers({len(layers): entered[len(layers)]}, check))
        if ObservedState.RESIDUAL in states:
            hooks.enter_context(hook_before_layers(entered, show_stream))
        inputs = [state for state in states if state is ObservedState.FC1]
        outputs = [
            state for state in _MODULES if state in states and state is not ObservedState.FC1
        ]
        hooks.enter_context(hook_inputs(_modules(layers, inputs), show))
        hooks.enter_context(hook_outputs(_modules(layers, outputs), show))
        run_layers_uncompiled(backbone, batch)


def _modules(
    layers: Sequence[nn.Module], states: Sequence[ObservedState]
) -> dict[tuple[ObservedState, int], nn.Module]:
    """Return (state, number of the layer) -> module."""
    modules: dict[tuple[ObservedState, int], nn.Module] = {}
    for state in states:
        for number, layer in enumerate(layers, 1):
            modules[state, number] = layer.get_submodule(_MODULES[state])
    return modules
