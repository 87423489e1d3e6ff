"""Many vectors at once are each what `steering` does."""

from __future__ import annotations

import pytest
import torch

from lightning_mllm.analysis import SteeringVector, Window, steering
from lightning_mllm.analysis.steering.cases import SteeringCase, read_steered
from lightning_mllm.analysis.steering.steer import find_steer_positions
from lightning_mllm.analysis.steering.vector import vector_width
from lightning_mllm.models.backbone import fingerprint_backbone
from tests.support.decoders import LAYERS, last_logits, make_backbone, make_batch

WINDOWS = (Window(2, 2, 3), Window(LAYERS // 2, 0, LAYERS))


@pytest.mark.parametrize("at", ["image object", "image+text"])
def test_each_case_says_what_the_hooks_say(tiny_llava: str, at: str) -> None:
    backbone = make_backbone(tiny_llava)
    prompts = make_batch(tiny_llava, numbers=(0, 1)).prompts()
    width = vector_width(backbone)
    states = 2 * torch.randn(2, LAYERS + 1, width, generator=torch.Generator().manual_seed(0))
    weights = fingerprint_backbone(backbone.model)
    positions = find_steer_positions(prompts.spans, at)
    which = torch.tensor([1, 0])

    cases = [SteeringCase(positions, window, states, which, 0.7) for window in WINDOWS]
    found = dict(read_steered(backbone, prompts, cases))

    clean = last_logits(backbone, prompts)
    torch.testing.assert_close(found[-1], clean, rtol=0, atol=1e-10)
    for number, window in enumerate(WINDOWS):
        layers = range(window.start, window.stop)
        for row, own in enumerate(which.tolist()):
            vector = SteeringVector("v", at, states[own], weights)
            with steering(backbone, prompts, vector, at, layers, scale=0.7):
                expected = last_logits(backbone, prompts)
            torch.testing.assert_close(found[number][row], expected[row], rtol=0, atol=1e-10)
        assert not torch.isclose(found[number], clean).all()
