from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from lightning_mllm.models.tiny import TinyFamily, build_tiny_checkpoint


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


@pytest.mark.parametrize(("family", "kinds"), [("qwen3_vl", 4), ("gemma4", 4), ("llava_vit", 4)])
def test_the_branches_of_other_towers_are_weaker_too_but_not_their_projector(
    tmp_path: Path, family: TinyFamily, kinds: int
) -> None:
    plain, trained = (
        AutoModelForImageTextToText.from_pretrained(
            build_tiny_checkpoint(tmp_path / str(flag), family, to_train=flag)
        )
        for flag in (False, True)
    )

    others = dict(trained.named_parameters())
    weaker = {
        re.sub(r"\d+", "N", name)
        for name, weight in plain.named_parameters()
        if weight.ndim > 1 and others[name].std() < 0.9 * weight.std()
    }
    assert len({name for name in weaker if "pos" not in name}) == kinds
    assert not [name for name in weaker if "merger" in name or "projector" in name]


def test_an_embedding_that_is_the_head_has_the_variance_of_a_weight(tmp_path: Path) -> None:
    tied, own = (
        AutoModelForImageTextToText.from_pretrained(
            build_tiny_checkpoint(tmp_path / family, family)
        )
        for family in ("llava_siglip", "llava")
    )

    for model, std in ((tied, 64**-0.5), (own, 1.0)):
        embedding = model.get_input_embeddings().get_parameter("weight")
        assert embedding.std().item() == pytest.approx(std, rel=0.05)


def test_an_expert_has_the_variance_of_its_own_fan_in(tmp_path: Path) -> None:
    folder = build_tiny_checkpoint(tmp_path / "moe", "qwen3_vl_moe")

    model = AutoModelForImageTextToText.from_pretrained(folder)

    experts = model.get_parameter("model.language_model.layers.0.mlp.experts.gate_up_proj")
    assert experts.std().item() == pytest.approx(64**-0.5, rel=0.05)
