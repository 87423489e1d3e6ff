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
