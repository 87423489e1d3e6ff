"""The states of a batch as they come out of the LLM, layer by layer, to whoever observes them; none is kept.

Index 0 of the residual stream is what enters the first block, index l what leaves block l, un-normed: also the last
one, of which `output_hidden_states` gives the normed state only. Inside block l, counted from 1, are the states that
are not in the residual stream yet (Shukor and Cord, arXiv 2405.16700, section 3):

    X' = X + SA(LN1(X));  next X = X' + FC2(FC1(LN2(X')))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from enum import StrEnum
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import before_layers, inputs_of, outputs_of, stream_into
from lightning_mllm.models.layers import decoder_layers, layers_and_norm, run_uncompiled
from lightning_mllm.types import MultimodalBatch


class State(StrEnum):
    """Where in the LLM a state is."""

    RESIDUAL = "residual"
    LN1 = "LN1"  # the normed stream, as attention gets it
    SA = "SA"  # what attention adds
    LN2 = "LN2"  # the normed stream, as the FFN gets it
    FC1 = "FC1"  # the FFN's inner units, of its inner width
    FC2 = "FC2"  # what the FFN adds


StateName = Literal["residual", "LN1", "SA", "LN2", "FC1", "FC2"]
Observe = Callable[[State, int, Tensor], None]

_MODULES = {
    State.LN1: "input_layernorm",
    State.SA: "self_attn",
    State.LN2: "post_attention_layernorm",
    State.FC1: "mlp.down_proj",  # what enters it
    State.FC2: "mlp",
}
_ADDED = (State.SA, State.FC2)
_PARTS = {name.partition(".")[0] for name in _MODULES.values()}


def states_of(names: Sequence[str]) -> tuple[State, ...]:
    """Return the states of these names.

    Raises:
        ConfigError: There is none of such a name, or one comes twice.
    """
    known = set(State)
    if len(set(names)) < len(names) or not known.issuperset(names):
        raise ConfigError(f"States are {', '.join(names)}; each can be one of {', '.join(State)}, once.")
    return tuple(map(State, names))


@torch.no_grad()
def stream_states(
    backbone: Backbone,
    batch: MultimodalBatch,
    states: Sequence[State],
    observe: Observe,
    enter: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Run the LLM once over a batch, and show its states; blocks come in order.

    Args:
        backbone: The model.
        batch: What it reads.
        states: Which are shown.
        observe: Gets the state, its layer and its values, (batch, sequence, width); autocast is off in it.
        enter: Makes what enters the first block of what would, (batch, sequence, width) each.

    Raises:
        ConfigError: States inside blocks are asked for, and the blocks are built otherwise.
        DataError: States of a sample are not finite.
    """
    blocks = decoder_layers(backbone)

    def check(_: int, leaving: Tensor, __: Any) -> None:  # what is not finite stays so from block to block
        broken = (~leaving.isfinite().all(-1) & batch.attention_mask.bool()).any(1)
        if rows := broken.nonzero()[:, 0].tolist():
            raise DataError(
                f"The LLM's states of sample {batch.sample_ids[rows[0]]!r} are not finite. Load the model in bfloat16 "
                "or float32."
            )

    def show(place: tuple[State, int], values: Tensor) -> None:
        if place[0] in _ADDED:
            values = values * getattr(blocks[place[1] - 1], "residual_multiplier", 1.0)  # Granite scales what it adds
        with torch.autocast(values.device.type, enabled=False):
            observe(*place, values)

    def show_stream(layer: int, values: Tensor, _: Any) -> None:
        show((State.RESIDUAL, layer), values)

    with ExitStack() as hooks:
        if enter is not None:
            hooks.enter_context(stream_into(blocks[0], enter))
        hooks.enter_context(before_layers({len(blocks): backbone.decoder.norm}, check))  # type: ignore[dict-item]  # a module
        if State.RESIDUAL in states:
            hooks.enter_context(before_layers(dict(enumerate(layers_and_norm(backbone))), show_stream))
        inside = [state for state in _MODULES if state in states]
        hooks.enter_context(inputs_of(_modules(blocks, [s for s in inside if s is State.FC1]), show))
        hooks.enter_context(outputs_of(_modules(blocks, [s for s in inside if s is not State.FC1]), show))
        run_uncompiled(backbone, batch)


def _modules(blocks: Sequence[nn.Module], states: Sequence[State]) -> dict[tuple[State, int], nn.Module]:
    """Return (state, number of the block) -> module."""
    for block in blocks if states else ():
        if (parts := {name for name, _ in block.named_children()}) != _PARTS:
            raise ConfigError(
                f"States inside blocks are known where a block has {', '.join(sorted(_PARTS))}, as those of Llama, "
                f"Mistral and Qwen2; a {type(block).__name__} has {', '.join(sorted(parts))}. Ask for "
                f"{State.RESIDUAL!s} states only."
            )
    return {(s, number): block.get_submodule(_MODULES[s]) for number, block in enumerate(blocks, 1) for s in states}
