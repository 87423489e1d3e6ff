"""Decoding answers is what transformers' own `generate` does with the same settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mllm.evaluation.decoding import decode_answers, decoding_end_ids
from lightning_mllm.evaluation.prompt_pass import PromptPass
from tests.evaluation.conftest import Scene


def generate(scene: Scene, limit: int, temperature: float) -> Tensor:
    """Return what the model's own generation appends to the prompts."""
    model: Any = scene.model
    prompts = scene.batch.prompts()
    options = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    tokens: Tensor = model.generate(
        **prompts.model_inputs(),
        max_new_tokens=limit,
        pad_token_id=prompts.pad_id,
        eos_token_id=decoding_end_ids(model, prompts),
        **options,
    )
    return tokens[:, prompts.input_ids.shape[1] :]


@pytest.mark.parametrize("ends", ["none", "one at the start", "all at the start", "in the middle"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_answers_are_those_of_the_models_own_generation(
    llava: Scene, ends: str, temperature: float
) -> None:
    """Whatever ends them, and whether the reference answers are in the pass."""

    def decode(limit: int, with_answers: bool) -> Tensor:
        torch.manual_seed(3)
        asked = PromptPass(llava.model, llava.batch, with_answers=with_answers)
        return decode_answers(asked, limit, temperature)

    endless = decode(5, True)
    llava.model.generation_config.eos_token_id = {
        "none": None,
        "one at the start": int(endless[0, 0]),
        "all at the start": endless[:, 0].tolist(),
        "in the middle": [int(endless[0, 1]), int(endless[2, 3])],
    }[ends]
    for limit in (1, 5):
        torch.manual_seed(3)
        expected = generate(llava, limit, temperature)
        assert torch.equal(decode(limit, True), expected)
        assert torch.equal(decode(limit, False), expected)
