from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mllm.tracking.figures import comparison
from tests.support.figures import keep_figures


def test_curves_of_runs_have_the_axes_and_the_words_of_a_learning_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = keep_figures(monkeypatch, comparison)
    curves = {
        "val/loss": {"a": {1: 2.0}, "b": {1: 1.0}},
        "val/generation/accuracy": {"a": {1: 0.0, 2: 0.0}, "b": {1: 0.0}},
        "probe/val/pre-mean/linear/accuracy": {"a": {0: 0.5}, "b": {0: 0.5}},
    }

    comparison.draw_compared_curves(curves, tmp_path / "curves.png")

    found = [
        [" ".join(axis.get_title().split()), axis.get_ylabel(), axis.get_ylim()]
        for axis in drawn[0].axes
    ]
    (loss, _, (bottom, _)), *scores = found[:3]
    assert (loss, bottom) == ("Loss, validation", 0)
    assert scores == [
        ["Accuracy, generation, validation", "Accuracy (0-1)", (0, 1.02)],
        ["Probes, Accuracy, pre-mean, linear, validation", "Accuracy (0-1)", (0, 1.02)],
    ]
