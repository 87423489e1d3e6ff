"""The calibrations of several tasks in a folder.

Each calibration has a file, and `rows.csv` has a row per sample: it says which files there must be.
`lightning export --subnetwork.path <folder>` writes the model with nothing but what all of these
tasks keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lightning_mllm.analysis.subnetwork.calibration import Calibration
from lightning_mllm.analysis.subnetwork.calibration_options import Tokens
from lightning_mllm.analysis.subnetwork.context import pruned
from lightning_mllm.analysis.subnetwork.mask import SubNetwork, intersection
from lightning_mllm.errors import CheckpointError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.store.rows import read_rows


@dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """A sample that was calibrated on.

    Attributes:
        sample_id: Id of the sample.
        task: Name of the task that the sample is of.
        fold: Number of the task's set that the sample is in.
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
        CheckpointError: The folder has none, or one of a task is missing or damaged: none is left
            out.
    """
    path = folder / "rows.csv"
    tasks = sorted(set(read_rows(path, CalibrationRow)["task"].tolist())) if path.is_file() else []
    if not tasks:
        raise CheckpointError(
            f"{folder} has no rows.csv with samples, so it is not the folder of an "
            "ActivatedWeights that has ended. Name such a folder: "
            "runs/<name>/analysis/<split>-step<k>/activated_weights."
        )
    return {task: Calibration.load(folder / file_name(task, tokens, 0)) for task in tasks}


@dataclass(frozen=True)
class StoredSubNetwork:
    """A sub-network on the disk.

    Attributes:
        path: Folder of an `ActivatedWeights` of this model. It stands for the alpha-SubNet, what
            all of its tasks keep, by the first set of each task. Or the file of any sub-network,
            see `SubNetwork.save`.
        tokens: Which of the folder's calibrations are used; ignored for a file.
    """

    path: str
    tokens: Tokens = "perceptual"

    def load(self, backbone: Backbone) -> SubNetwork:
        """Read the sub-network.

        Raises:
            CheckpointError: It is missing or damaged, or the calibrations are of a model with other
                weights.
        """
        if not Path(self.path).is_dir():
            return SubNetwork.load(Path(self.path))
        calibrations = load_calibrations(Path(self.path), self.tokens)
        return intersection([each.subnetwork(backbone) for each in calibrations.values()])


@contextmanager
def pruned_to(backbone: Backbone, stored: StoredSubNetwork | None) -> Iterator[None]:
    """Let a model use nothing but a stored sub-network while the `with` block lasts.

    Args:
        backbone: The model.
        stored: Where the sub-network is; None for the whole model.

    Raises:
        CheckpointError: The sub-network can't be loaded, see `StoredSubNetwork.load`.
        ConfigError: The sub-network is that of a model of another size, or the model can't be
            pruned.
    """
    if stored is None:
        yield
        return
    with pruned(backbone, stored.load(backbone)):
        yield
