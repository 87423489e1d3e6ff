"""The decoder run layer by layer is the decoder."""

from __future__ import annotations

import pytest
import torch

from lightning_mllm.analysis.forward.stepwise import StepwiseStream
from lightning_mllm.models.hooks import hook_inputs
from lightning_mllm.models.layers import decoder_layers, layers_and_norm, run_layers_uncompiled
from tests.conftest import FamilyBuilder
from tests.support.decoders import count_hooks
from tests.support.family_questions import ask, load


@pytest.mark.parametrize(
    ("name", "added"),
    [("qwen2_vl", False), ("qwen3_vl", True), ("gemma4", False), ("gemma3", False)],
)
@torch.no_grad()
def test_a_stream_enters_each_layer_as_in_the_model(
    tiny_family: FamilyBuilder, name: str, added: bool
) -> None:
    """Whatever the model adds between layers, or gives a layer by position."""
    backbone, batch = load(tiny_family(name)), ask(tiny_family(name), "right")
    real, hooks = batch.attention_mask.bool(), count_hooks(backbone)
    expected: dict[int, torch.Tensor] = {}
    with hook_inputs(dict(enumerate(layers_and_norm(backbone))), expected.__setitem__):
        run_layers_uncompiled(backbone, batch)

    stream = StepwiseStream.of(backbone, batch, real)

    assert bool(stream.between) == added
    for number, layer in enumerate(decoder_layers(backbone)):
        torch.testing.assert_close(stream.hidden[real], expected[number][real], rtol=0, atol=1e-12)
        stream.hidden = stream.through(number, layer)
    torch.testing.assert_close(
        stream.hidden[real], expected[len(expected) - 1][real], rtol=0, atol=1e-12
    )
    assert count_hooks(backbone) == hooks
