"""Feature sets as files: safetensors, read back without running anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_mllm.errors import DataError
from lightning_mllm.probing.features.feature_set import FeatureSet
from lightning_mllm.store.files import write_tensor_file


def save_features(path: Path, sets: Mapping[str, FeatureSet], settings: Mapping[str, Any]) -> None:
    """Write the feature sets of one split at several points, whole or not at all.

    Args:
        path: A `.safetensors` file; its folder is created.
        sets: Point's name -> features; all of the same samples, in the same order.
        settings: Plain values that say where the features come from (checkpoint, step, split, ...).

    Raises:
        DataError: The sets are of different samples, or the file can't be written.
    """
    first = next(iter(sets.values()))
    if any(other.sample_ids != first.sample_ids for other in sets.values()):
        raise DataError(
            f"{path} can't hold features of different samples; "
            "save each split in a file of its own."
        )
    tensors = {point: each.features for point, each in sets.items()} | {"targets": first.targets}
    about = {"names": first.names, "sample_ids": first.sample_ids, "settings": dict(settings)}
    try:
        write_tensor_file(path, tensors, {"about": json.dumps(about)})
    except OSError as error:
        raise DataError(
            f"The features can't be written to {path}: {error}. Make room there, put the run into "
            "another folder, or save less: fewer points, or a larger every_n_epochs."
        ) from error


def load_features(path: Path) -> dict[str, FeatureSet]:
    """Return point's name -> features of a file that `save_features` wrote.

    Raises:
        DataError: The file was not written by `save_features`, or it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        targets: Tensor = tensors.pop("targets")
        classes, sample_ids = tuple(about["names"]), tuple(about["sample_ids"])
    # ValueError: its metadata is not JSON
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not a file of features ({error}). Expected one that SaveFeatures wrote."
        ) from error
    return {
        point: FeatureSet(features=features, targets=targets, names=classes, sample_ids=sample_ids)
        for point, features in tensors.items()
    }
