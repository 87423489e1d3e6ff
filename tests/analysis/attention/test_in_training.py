"""Shares and pointing during a short real fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mllm.analysis import AttentionPointing, AttentionShares, Bootstrap
from lightning_mllm.callbacks import RunAnalysis
from tests.support.feature_callbacks import make_run

QUICK = Bootstrap(resamples=10)


@pytest.mark.slow
def test_they_run_before_training_and_at_each_epoch(tiny_llava: str, tmp_path: Path) -> None:
    shares, pointing = AttentionShares(bootstrap=QUICK), AttentionPointing(bootstrap=QUICK)

    run = make_run(tiny_llava, tmp_path, [RunAnalysis([shares, pointing])]).fit()

    folder = run.folder / "analysis"
    for name in ("attention", "pointing"):
        for step in (0, 2, 4):
            assert (folder / f"val-step{step}" / name / "summary.csv").is_file()
    assert (folder / "val-training" / "attention.csv").is_file()
