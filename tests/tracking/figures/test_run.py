from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lightning_mllm.evaluation import ClassificationResult
from lightning_mllm.store.files import write_csv_file
from lightning_mllm.tracking.figures import run as figures
from lightning_mllm.tracking.figures.run import (
    draw_confusion_matrix_of_run,
    draw_learning_curve_of_run,
    draw_probe_curve_of_run,
)
from tests.support.figures import keep_figures


def colours(path: Path) -> int:
    """Number of different colours in a picture: 1 if nothing was drawn."""
    with Image.open(path) as picture:
        return len(picture.convert("RGB").getcolors(maxcolors=10**6) or [])


def metrics_csv(folder: Path) -> Path:
    columns = [
        "step",
        "train/loss",
        "val/loss",
        "val/likelihood/accuracy",
        "val/likelihood/macro_f1",
    ]
    columns += ["zero_shot/likelihood/accuracy", "test/likelihood/accuracy"]
    rows = [[0, None, 2.3, 0.1, 0.02, 0.12, None], [5, 1.5, None, None, None, None, None]]
    rows += [[10, None, 1.1, 0.6, 0.5, None, None], [10, None, 1.1, 0.7, 0.6, None, 0.65]]
    return write_csv_file(folder / "metrics.csv", columns, rows)


def test_the_curve_is_drawn(tmp_path: Path) -> None:
    path = draw_learning_curve_of_run(metrics_csv(tmp_path), tmp_path / "curve.png", classes=10)

    assert colours(path) > 50


def test_where_a_step_occurs_twice_the_later_row_counts(tmp_path: Path) -> None:
    curves = figures._read_curves(metrics_csv(tmp_path))

    assert curves["val/likelihood/accuracy"] == {0: 0.1, 10: 0.7}
    assert curves["test/likelihood/accuracy"] == {10: 0.65}


def test_a_run_without_classes_has_a_loss_curve(tmp_path: Path) -> None:
    csv = write_csv_file(tmp_path / "metrics.csv", ["step", "train/loss"], [[1, 2.0], [2, 1.0]])

    assert colours(draw_learning_curve_of_run(csv, tmp_path / "curve.png")) > 20


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    return keep_figures(monkeypatch, figures)


def test_there_is_a_panel_for_each_score_that_there_is(tmp_path: Path, drawn: list[Figure]) -> None:
    columns = ["step", "val/loss", "val/exact_match/accuracy", "val/exact_match/colour"]
    csv = write_csv_file(
        tmp_path / "metrics.csv", columns, [[0, 2.0, 0.1, 0.2], [2, 1.0, 0.6, 0.5]]
    )

    draw_learning_curve_of_run(csv, tmp_path / "open.png")
    draw_learning_curve_of_run(metrics_csv(tmp_path), tmp_path / "classes.png")

    titles = [[axis.get_title() for axis in figure.axes] for figure in drawn]
    assert titles == [["Loss", "Accuracy"], ["Loss", "Accuracy", "Macro-F1"]]


def test_chance_is_a_line_where_the_number_of_classes_is_known(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    row = {"point": "post", "probe": "mlp", "stage": "val", "step": 0}
    rows = [{**row, "accuracy": 0.5, "macro_f1": 0.4}]

    draw_learning_curve_of_run(metrics_csv(tmp_path), tmp_path / "curve.png", classes=4)
    draw_probe_curve_of_run(rows, tmp_path / "probes.png", classes=4)
    draw_probe_curve_of_run(rows, tmp_path / "probes.png")

    found = []
    for figure in drawn:
        for axis in figure.axes:
            found += [(axis.get_ylabel(), *line.get_ydata()) for line in axis.lines]  # type: ignore[misc]
    assert [each for each in found if each[1:] == (0.25, 0.25)] == [
        ("Accuracy (0-1)", 0.25, 0.25)
    ] * 2


def test_the_probes_curve_says_how_many_samples_there_are(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    row = {"point": "post", "probe": "linear", "step": 0, "accuracy": 0.5, "macro_f1": 0.4}
    rows = [
        {**row, "stage": stage, "n_train": 44, "n_test": n}
        for stage, n in (("val", 7), ("test", 9))
    ]

    draw_probe_curve_of_run(rows, tmp_path / "probes.png")

    title = " ".join(drawn[0].axes[0].get_title().split())
    assert title.endswith("N: train 44, validation 7, test 9")


@pytest.mark.parametrize("classes", [2, 25, 70])
def test_the_confusion_matrix_is_drawn_whatever_the_number_of_classes(
    tmp_path: Path, classes: int
) -> None:
    confusion = np.random.default_rng(0).integers(0, 5, (classes, classes + 1))
    confusion[0] = 0
    names = tuple(
        f"a $class with $ and _ and \u4e2d in its name {index}" for index in range(classes)
    )
    result = ClassificationResult.from_confusion(names, confusion)

    assert colours(draw_confusion_matrix_of_run(result, tmp_path / "confusion.png")) > 10


def test_no_global_state_of_matplotlib_is_touched(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    draw_learning_curve_of_run(metrics_csv(tmp_path), tmp_path / "curve.png", classes=10)

    assert dict(mpl.rcParams) == before
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )
