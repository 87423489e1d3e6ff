"""One vector per sample, with its class: what extraction gives and probes take."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_mllm.errors import DataError
from lightning_mllm.evaluation.finite import check_finite


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FeatureSet:
    """The pooled features of the samples of a split.

    Attributes:
        features: (samples, width), floating point, on the CPU.
        targets: (samples,) int64 class indices.
        names: Class names; a target is an index into them.
        sample_ids: Id of each sample.

    Raises:
        DataError: There is no sample, lengths differ, or a target is not a class.
        NotFiniteError: A feature is NaN or infinite.
    """

    features: Tensor
    targets: Tensor
    names: tuple[str, ...]
    sample_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the fields against each other."""
        n = len(self.sample_ids)
        if self.features.dim() != 2 or len(self.features) != n or self.targets.shape != (n,):
            raise DataError(
                f"Features of shape {tuple(self.features.shape)} and targets of shape "
                f"{tuple(self.targets.shape)} do not belong to {n} samples; expected ({n}, width) "
                f"and ({n},)."
            )
        if n == 0:
            raise DataError(
                "There are no features: no sample was extracted. Check that the split is not empty."
            )
        outside = (self.targets < 0) | (self.targets >= len(self.names))
        if outside.any():
            row = int(outside.int().argmax())
            raise DataError(
                f"Sample {self.sample_ids[row]!r} has target {int(self.targets[row])}, which is "
                f"none of the {len(self.names)} classes. Probes need data with labels."
            )
        way_out = "lower the learning rate, or use bfloat16 or float32 instead of float16"
        check_finite(self.features, self.sample_ids, "The features", way_out)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.sample_ids)

    def __repr__(self) -> str:
        """Return its sizes: all numbers of a split would fill the screen."""
        return f"FeatureSet({len(self)} samples, width {self.width}, {len(self.names)} classes)"

    @property
    def width(self) -> int:
        """Length of a feature vector."""
        return self.features.shape[1]
