"""What `setup` looks for in the labels of a split, so that no training run ends on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning_mllm.data.labels import class_names, normalise_label
from lightning_mllm.data.splits import Split
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample


def check_labels(
    samples: Sequence[Sample], split: Split, names: Sequence[str], train: Sequence[Sample]
) -> Sequence[Sample]:
    """Return the samples with their labels normalised.

    Args:
        samples: Of the split.
        split: Its name.
        names: Normalised class names.
        train: The training samples, as loaded.

    Raises:
        DataError: A sample has no label, one that is no class, or one that can't be told from another.
    """
    known = set(names)
    for sample in samples:
        if sample.label is None:
            raise DataError(f"Sample {sample.id!r} of the {split!r} split has no label, but others have one.")
        if normalise_label(sample.label) not in known:
            raise DataError(
                f"The label {sample.label!r} of sample {sample.id!r} in the {split!r} split is none of the "
                f"{len(names)} classes of the training split: {', '.join(names[:10])}"
                f"{', ...' if len(names) > 10 else ''}. Correct it, or add training samples of that class."
            )
    class_names(sample.label for part in (train, samples) for sample in part if sample.label is not None)
    return [replace(sample, label=normalise_label(sample.label or "")) for sample in samples]
