from __future__ import annotations

import csv
from pathlib import Path

import torch

from lightning_mllm.tracking.metrics_file import MetricsFile


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_go_to_one_row_per_call(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"loss": torch.tensor(0.5)}, step=3)
    logger.log_metrics({"val/accuracy": 0.25}, step=3)
    logger.finalize("success")

    assert rows(tmp_path / "metrics.csv") == [
        {"step": "3", "loss": "0.5", "val/accuracy": ""},
        {"step": "3", "loss": "", "val/accuracy": "0.25"},
    ]


def test_a_new_metric_gets_a_column_and_earlier_rows_stay(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path, rows_per_write=1)
    logger.log_metrics({"loss": 1.0, "epoch": 0.0}, step=1)
    logger.log_metrics({"loss": 2.0}, step=2)
    logger.log_metrics({"new": 3.0}, step=3)

    assert rows(tmp_path / "metrics.csv") == [
        {"step": "1", "loss": "1.0", "epoch": "0", "new": ""},
        {"step": "2", "loss": "2.0", "epoch": "", "new": ""},
        {"step": "3", "loss": "", "epoch": "", "new": "3.0"},
    ]
    assert not list(tmp_path.glob("*.part"))


def test_rows_are_written_without_waiting_for_the_end(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path, rows_per_write=2)
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.log_metrics({"loss": 2.0}, step=2)

    assert len(rows(tmp_path / "metrics.csv")) == 2


def test_a_run_that_goes_on_begins_with_the_rows_of_its_checkpoint(tmp_path: Path) -> None:
    earlier, later = MetricsFile(tmp_path / "one"), MetricsFile(tmp_path / "two")
    earlier.log_metrics({"train/loss": 1.0}, step=1)
    count = earlier.count  # the checkpoint of step 2 is written here, before the row of its step
    earlier.save_with_step()
    earlier.log_metrics({"train/loss": 2.0}, step=2)
    earlier.log_metrics({"val/loss": 3.0}, step=2)  # measured after it, and again later
    earlier.log_metrics({"train/loss": 4.0}, step=3)
    earlier.finalize("failed")

    later.begin_with(tmp_path / "one", count, step=2)
    later.log_metrics({"val/loss": 3.0}, step=2)
    later.finalize("success")

    found = [(row["step"], row["train/loss"] or row["val/loss"]) for row in rows(later.path)]
    assert found == [("1", "1.0"), ("2", "2.0"), ("2", "3.0")]
    assert later.count == 3


def test_the_row_of_a_checkpoints_step_is_written_at_once(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "run")

    metrics.save_with_step()
    metrics.log_metrics({"train/loss": 2.0}, step=2)

    assert len(rows(metrics.path)) == 1  # a kill would lose what is in memory


def test_a_run_without_rows_to_begin_with_begins_empty(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "run")

    metrics.begin_with(tmp_path / "none", 3, step=2)

    assert metrics.count == 0
