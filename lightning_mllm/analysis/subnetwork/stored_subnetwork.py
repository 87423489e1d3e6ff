"""A sub-network on the disk, and the model that uses nothing but it.

`lightning export --subnetwork.path <folder>` writes the model with nothing but what all tasks of an
`ActivatedWeights` keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightning_mllm.analysis.subnetwork.calibration_files import load_calibration_files
from lightning_mllm.analysis.subnetwork.calibration_options import Tokens
from lightning_mllm.analysis.subnetwork.pruned import pruned
from lightning_mllm.analysis.subnetwork.subnetwork import SubNetwork, intersection
from lightning_mllm.models.backbone import Backbone


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
        calibrations = load_calibration_files(Path(self.path), self.tokens)
        return intersection([each.subnetwork(backbone) for each in calibrations.values()])


@contextmanager
def pruned_to_stored(backbone: Backbone, stored: StoredSubNetwork | None) -> Iterator[None]:
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
