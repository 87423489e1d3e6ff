"""Words on pictures: a file per picture, with tiles in a panel of their own."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_mllm.analysis.core.result import AnalysisResult, PatchPicture
from lightning_mllm.data.images.patch_places import PatchPlace
from lightning_mllm.tracking.figures.patches import draw_patch_pictures

PICTURE = Image.new("RGB", (40, 20), "navy")


def result(*words: str) -> AnalysisResult:
    values = tuple(number / 10 for number, _ in enumerate(words))
    about = PatchPicture("words-0", "one", words, values, "Probability", "Words of $1 patches")
    return AnalysisResult("x", np.zeros((0,)), ("a",), {"a": ()}, 1, {}, pictures=(about,))


def place(left: int, *, in_tile: bool = False) -> PatchPlace:
    return PatchPlace(left, 0, left + 20, 20, in_tile)


def test_a_picture_has_a_figure_and_tiles_make_it_wider(tmp_path: Path) -> None:
    words = ("red", "\u7ea2", "x$y", "averylongwordindeed")
    views = [place(0), place(20), place(0, in_tile=True), place(20, in_tile=True)]
    widths = []
    for count in (2, 4):
        folder = tmp_path / str(count)
        (path,) = draw_patch_pictures(
            result(*words[:count]), folder, lambda _, n: (PICTURE, views[:n])
        )
        assert path == folder / "words-0.png"
        with Image.open(path) as drawn:
            widths.append(drawn.width)
    assert widths[1] > widths[0]


def test_a_picture_whose_patches_are_not_known_is_not_drawn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert draw_patch_pictures(result("red"), tmp_path, lambda *_: None) == []
    assert "it is not known which part each visual token" in caplog.text
    assert draw_patch_pictures(result("red"), tmp_path, None) == []
