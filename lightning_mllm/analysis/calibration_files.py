"""The calibrations of several tasks in a folder: a file each, and a row per sample that says which there must be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lightning_mllm.analysis.calibration import Calibration, Tokens
from lightning_mllm.analysis.rows import read_rows
from lightning_mllm.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """A sample that was calibrated on.

    Attributes:
        sample_id: The sample's.
        task: Of which it is.
        fold: To which of the task's sets it belongs.
    """

    sample_id: str
    task: str
    fold: int


def file_name(task: str, tokens: Tokens, fold: int) -> str:
    """Return the name of a calibration's file."""
    return f"{quote(task, safe='')}.{tokens}.{fold}.safetensors"


def load_calibrations(folder: Path, tokens: Tokens) -> dict[str, Calibration]:
    """Read the first calibration of each task, of some tokens.

    Raises:
        CheckpointError: The folder has none, or one of a task is missing or damaged: none is left out.
    """
    path = folder / "rows.csv"
    tasks = sorted(set(read_rows(path, CalibrationRow)["task"].tolist())) if path.is_file() else []
    if not tasks:
        raise CheckpointError(
            f"{folder} has no rows.csv with samples, so it is not what an ActivatedWeights leaves behind when it has "
            "ended. Name such a folder: runs/<name>/analysis/<split>-step<k>/activated_weights."
        )
    return {task: Calibration.load(folder / file_name(task, tokens, 0)) for task in tasks}
