from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lightning_mllm.tracking.figures.predictions import (
    PredictedAnswer,
    PredictionCaption,
    draw_predictions,
)


@pytest.mark.parametrize("count", [1, 3, 5, 16])
def test_the_sheet_shows_right_in_green_and_wrong_in_red(tmp_path: Path, count: int) -> None:
    pictures = [Image.new("L", (20 + index, 30), 128) for index in range(count)]
    answers = [
        PredictedAnswer("generation", "$broken_{math$ \x1a \u4e2d", "", False),
        PredictedAnswer("likelihood", "zero", "zero", True),
    ]
    path = draw_predictions(
        pictures,
        [PredictionCaption("What?", "zero", answers)] * count,
        tmp_path / "sheet.png",
        "test",
    )

    with Image.open(path) as sheet:
        seen = {colour for _, colour in sheet.convert("RGB").getcolors(maxcolors=10**6) or []}
    assert {(0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00)} <= seen
