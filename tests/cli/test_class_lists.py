"""Classes are named side by side or as a list in brackets, which means the same."""

from __future__ import annotations

import pytest

from lightning_mllm.cli.class_lists import split_class_lists

IMAGES = ["--images", "new"]


@pytest.mark.parametrize(
    "typed",
    [
        ["--classes", "red fox", "no"],
        ["--classes", "[red fox, no]"],
        ["--classes=[red fox, no]"],
        ["--classes", '["red fox", "no"]'],
        ["--classes=red fox", "no"],
        ["--classes", "[red fox]", "no"],
    ],
)
def test_a_list_is_its_names_side_by_side(typed: list[str]) -> None:
    assert split_class_lists([*typed, *IMAGES]) == ["--classes", "red fox", "no", *IMAGES]


@pytest.mark.parametrize(
    "typed",
    [["--classes", "[a: b", "c"], ["--question", "[a, b]"], ["--classes", "a", "b", "-x", "y"]],
)
def test_all_else_stays(typed: list[str]) -> None:
    assert split_class_lists(typed) == typed
