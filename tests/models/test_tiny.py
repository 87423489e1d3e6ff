from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from lightning_mllm.models.tiny import build_tiny_checkpoint


def test_a_model_to_train_has_weaker_residual_branches_and_positions_and_is_else_the_same(
    tmp_path: Path,
) -> None:
    frozen, trained = (
        AutoModelForImageTextToText.from_pretrained(
            build_tiny_checkpoint(tmp_path / str(flag), to_train=flag)
        )
        for flag in (False, True)
    )

    others = dict(trained.named_parameters())
    weaker = {
        name for name, weight in frozen.named_parameters() if not torch.equal(weight, others[name])
    }
    assert {name.split(".", 2)[2].split(".")[-2] for name in weaker} == {
        *("out_proj", "fc2", "o_proj", "down_proj", "position_embedding")
    }
    for name in weaker:
        assert others[name].std() < 0.6 * frozen.get_parameter(name).std()
