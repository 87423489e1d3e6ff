"""How patches are written, and which text is refused."""

from __future__ import annotations

import pytest

from lightning_mllm.analysis import Patch, PatchKind
from lightning_mllm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("image object @ residual", "image object @ residual"),
        ("  Last@ attention ", "last @ attention"),
        ("last+question @ ffn", "question+last @ ffn"),
        ("image object & image tiles @ residual", "image object&image tiles @ residual"),
        ("last @ head[4.0, 3.2,3.2]", "last @ head[3.2,4.0]"),
        ("Swapped @ residual", "swapped @ residual"),
    ],
)
def test_a_patch_has_one_name(text: str, written: str) -> None:
    patch = Patch.parse(text)

    assert str(patch) == written
    assert Patch.parse(str(patch)) == patch


def test_heads_are_those_of_a_layer() -> None:
    patch = Patch.parse("last @ head[3.2,4.0,3.1]")

    assert patch.kind is PatchKind.HEAD
    assert [patch.heads_of(layer) for layer in (2, 3, 4)] == [[], [1, 2], [0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image object", r"can't be read\. Write positions @ states"),
        ("last @ logits", "states can be residual, attention, ffn, head"),
        ("last @ head", "heads, as layer.head, stand behind the word head"),
        ("last @ ffn[1.2]", "heads, as layer.head, stand behind the word head"),
        ("last @ head[3]", r"'3' is not layer\.head"),
        ("lats @ residual", "names 'lats', which is not a segment"),
        ("image + @ residual", r"\+ \(either\) and & \(both\) each stand between two"),
    ],
)
def test_what_can_not_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Patch.parse(text)
