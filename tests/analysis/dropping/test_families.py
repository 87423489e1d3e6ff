"""Dropping where positions have axes or the FFN is a mixture; and where it is refused."""

from __future__ import annotations

import pytest
import torch

from lightning_mllm.analysis.dropping.drop import Drop
from lightning_mllm.analysis.dropping.dropping import dropping
from lightning_mllm.analysis.dropping.experiment import TokenDropping
from lightning_mllm.errors import ConfigError
from tests.conftest import FamilyBuilder
from tests.support.decoders import generate
from tests.support.family_questions import ask, load

LATE = Drop(layer=1)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl_moe", "granite_vision"])
def test_generating_token_by_token_is_running_all_again(
    tiny_family: FamilyBuilder, name: str
) -> None:
    """The prompts of a batch have other numbers of visual tokens, and caches of other lengths."""
    backbone, batch = load(tiny_family(name), dtype=torch.float32), ask(tiny_family(name))
    options = {"max_new_tokens": 4, "min_new_tokens": 4}

    with dropping(backbone, batch, LATE):
        found = [
            generate(backbone, batch.prompts(), use_cache=cached, **options)
            for cached in (True, False)
        ]

    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma3", "some of its layers keep the keys of a window only"),
        ("aya_vision", "some of its layers keep the keys of a window only"),
        ("paligemma", "its tokens also see later ones"),
        ("qwen3_5", "its LLM mixes tokens without keys in layers 0"),
    ],
)
def test_families_of_which_tokens_can_not_be_dropped_are_refused_by_name(
    tiny_family: FamilyBuilder, name: str, reason: str
) -> None:
    backbone = load(tiny_family(name), dtype=torch.float32)

    with pytest.raises(ConfigError, match=rf"Dropping tokens does not work with {name}: {reason}"):
        TokenDropping(drops=[LATE]).check_model(backbone)
