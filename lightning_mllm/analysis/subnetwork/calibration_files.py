"""The calibrations of several tasks in a folder.

Each calibration has a file, and `rows.csv` has a row per sample: it says which files there must be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lightning_mllm.analysis.subnetwork.calibration import Calibration
from lightning_mllm.analysis.subnetwork.calibration_options import Tokens
from lightning_mllm.errors import CheckpointError
from lightning_mllm.store.rows import read_rows


@dataclass(frozen=True, kw_only=True)
class CalibrationFileRow:
    """A sample that was calibrated on.

    Attributes:
        sample_id: Id of the sample.
        task: Name of the task that the sample is of.
        fold: Number of the task's set that the sample is in.
    """

    sample_id: str
    task: str
    fold: int


def calibration_file_name(task: str, tokens: Tokens, fold: int) -> str:
    """Return the name of a calibration's file."""
    return f"{quote(task, safe='')}.{tokens}.{fold}.safetensors"


def load_calibration_files(folder: Path, tokens: Tokens) -> dict[str, Calibration]:
    """Read the first calibration of each task, of some tokens.

    Raises:
        CheckpointError: The folder has none, or one of a task is missing or damaged: none is left
            out.
    """
    path = folder / "rows.csv"
    tasks = (
        sorted(set(read_rows(path, CalibrationFileRow)["task"].tolist())) if path.is_file() else []
    )
    if not tasks:
        raise CheckpointError(
            f"{folder} has no rows.csv with samples, so it is not the folder of an "
            "ActivatedWeights that has ended. Name such a folder: "
            "runs/<name>/analysis/<split>-step<k>/activated_weights."
        )
    return {
        task: Calibration.load(folder / calibration_file_name(task, tokens, 0)) for task in tasks
    }
