"""Which families there are, and which have several chat templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

import pytest
from transformers import AutoTokenizer

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.tiny import (
    CHAT_TEMPLATES,
    TinyFamily,
    TinySize,
    build_tiny_checkpoint,
)
from lightning_mllm.models.tiny.names import blueprint_by_name


@pytest.mark.parametrize("family", get_args(TinyFamily))
def test_every_name_has_a_blueprint(family: TinyFamily) -> None:
    assert blueprint_by_name(family, TinySize(), None).config["model_type"]


def test_an_unknown_family_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected one of: llava,") as caught:
        build_tiny_checkpoint(tmp_path / "x", cast(Any, "qwen2_vll"))

    assert 'mean "qwen2_vl"' in str(caught.value)
    assert all(name in str(caught.value) for name in get_args(TinyFamily))


def test_a_chat_is_for_the_families_that_have_several(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="llava and llava_next"):
        build_tiny_checkpoint(tmp_path / "x", "gemma3", "llama3")

    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_chat_that_is_not_named_is_vicuna(tmp_path: Path, family: TinyFamily) -> None:
    folder = build_tiny_checkpoint(tmp_path / "x", family)

    assert AutoTokenizer.from_pretrained(folder).chat_template == CHAT_TEMPLATES["vicuna"]
