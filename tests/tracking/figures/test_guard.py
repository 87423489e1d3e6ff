from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lightning_mllm.store.files import write_csv_file
from lightning_mllm.tracking.figures.run import draw_learning_curve_of_run, draw_probe_curve_of_run
from lightning_mllm.tracking.figures.study import draw_study_dots, draw_study_lines

PROBE = {"point": "post", "probe": "mlp", "stage": "val", "step": 0, "macro_f1": 0.5}


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_curve_with_a_number_that_is_none_is_drawn_without_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, loss: float
) -> None:
    metrics = tmp_path / "metrics.csv"
    metrics.write_text(f"step,train/loss,val/loss\n1,2.0,\n2,{loss},{loss}\n3,1.0,1.5\n")

    path = draw_learning_curve_of_run(metrics, tmp_path / "curve.png")

    with Image.open(path) as picture:
        assert len(picture.convert("RGB").getcolors(maxcolors=10**6) or []) > 20
    assert not caplog.records


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: draw_study_lines({}, path, ylabel="Loss"),
        lambda path: draw_study_dots([], path, xlabel="Score"),
        lambda path: draw_probe_curve_of_run([{**PROBE, "accuracy": None}], path),
        lambda path: draw_learning_curve_of_run(path.with_name("no metrics.csv"), output=path),
    ],
    ids=["no panel", "no dot", "no number", "no file"],
)
def test_a_figure_that_can_not_be_drawn_is_one_warning_and_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, draw: Callable[[Path], Any]
) -> None:
    rows = write_csv_file(tmp_path / "rows.csv", ["a"], [[1]])
    figure = tmp_path / "figure.png"
    figure.write_bytes(b"an earlier one")

    assert draw(figure) == figure

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"The figure {figure} can't be drawn (" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert list(tmp_path.iterdir()) == [rows]
