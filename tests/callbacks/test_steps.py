"""One number of steps in all files of a run: that of the optimiser steps taken."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from lightning_mllm.callbacks import EvaluationReport, LearningRateLog, RepresentationDrift
from lightning_mllm.evaluation import Likelihood
from lightning_mllm.models.module import MLLMModule
from tests.support.feature_callbacks import Keep, Run, make_run, quick_probes

Values = dict[int, float]


def _make(checkpoint: str, folder: Path) -> Run:
    run = make_run(
        checkpoint,
        folder,
        [quick_probes(), RepresentationDrift(), EvaluationReport(), LearningRateLog()],
    )
    run.module = MLLMModule(checkpoint, scorers=[Likelihood()])
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_llava: str) -> Run:
    """Four steps with two validations, and one before."""
    run = _make(tiny_llava, tmp_path_factory.mktemp("steps"))
    run.trainer.callbacks.append(Keep())  # type: ignore[attr-defined]  # of Lightning's Trainer
    run.trainer.validate(run.module, datamodule=run.data, verbose=False)
    return run.fit()


def _metrics(run: Run) -> dict[str, Values]:
    """Return metric -> step -> value."""
    found: defaultdict[str, Values] = defaultdict(dict)
    for row in run.rows("metrics.csv"):
        for key, value in row.items():
            if value:
                found[key][int(row["step"])] = float(value)
    return found


def test_rows_of_all_files_join_on_the_step(run: Run) -> None:
    metrics, probes = _metrics(run), run.rows("probes.csv")
    folders = {
        int(path.name.removeprefix("val-step")): path
        for path in run.folder.glob("evaluation/val-step*")
    }
    accuracies = {
        step: json.loads((path / "scores.json").read_text())["scorers"]["likelihood"]["accuracy"]
        for step, path in folders.items()
    }

    assert metrics["val/likelihood/accuracy"] == pytest.approx(accuracies)
    assert sorted(accuracies) == [0, 2, 4]
    for point in ("pre-mean", "post-mean"):
        own = {int(row["step"]): float(row["accuracy"]) for row in probes if row["point"] == point}
        assert metrics[f"probe/val/{point}/nearest-centroid/accuracy"] == own
        assert set(own) == set(accuracies)
    assert metrics["drift/post-mean/cka"] == {
        int(row["step"]): float(row["cka"]) for row in run.rows("drift.csv")
    }
    assert set(metrics["drift/post-mean/cka"]) == {2, 4}


def test_the_loss_and_the_rate_of_a_step_stand_where_the_step_is_taken(run: Run) -> None:
    metrics = _metrics(run)

    assert sorted(metrics["train/loss"]) == sorted(metrics["lr-AdamW/projector"]) == [1, 2, 3, 4]
    assert metrics["lr-AdamW/projector"][1] == 0  # the first of the warm-up
    epochs = [
        (int(row["step"]), row["epoch"]) for row in run.rows("metrics.csv") if row["train/loss"]
    ]
    assert epochs == [(1, "0"), (2, "0"), (3, "1"), (4, "1")]


def test_a_resumed_run_counts_on(run: Run, tiny_llava: str, tmp_path: Path) -> None:
    resumed = _make(tiny_llava, tmp_path).fit(
        ckpt_path=run.folder / "step3.ckpt", weights_only=True
    )
    metrics = _metrics(resumed)

    assert set(metrics["train/loss"]) == set(metrics["lr-AdamW/projector"]) == {4}
    assert metrics["val/loss"] == {4: _metrics(run)["val/loss"][4]}


def test_the_test_of_a_checkpoint_stands_at_its_step(
    run: Run, tiny_llava: str, tmp_path: Path
) -> None:
    tested = _make(tiny_llava, tmp_path).test(
        ckpt_path=run.folder / "step3.ckpt", weights_only=True
    )
    metrics = _metrics(tested)

    assert (
        set(metrics["test/loss"])
        == set(metrics["probe/test/pre-mean/nearest-centroid/accuracy"])
        == {3}
    )
    assert [path.name for path in tmp_path.glob("evaluation/*")] == ["test-step3"]
