"""Refuses features from which no meaningful score could come, before a probe is trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.probing.features.feature_set import FeatureSet

_LISTED = 5  # names, in a message

logger = logging.getLogger(__name__)


def check_probe_splits(
    train: Mapping[str, FeatureSet], test: Mapping[str, FeatureSet], seeds: Sequence[int]
) -> None:
    """Check what a probe is to be trained and scored on.

    Raises:
        DataError: Train and test do not belong together, or there are not two classes.
        ConfigError: There are no seeds, or one of them is given twice.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"A probe is trained once per seed; found seeds {list(seeds)}. Give one or more, all "
            "different."
        )
    if not train or set(train) != set(test):
        raise DataError(
            f"A probe is tested on the features that it is trained for; found train features "
            f"{sorted(train)} and test features {sorted(test)}. Extract the same ones from both "
            "splits."
        )
    for name in train:
        _check_pair(name, train[name], test[name])


def _check_pair(name: str, train: FeatureSet, test: FeatureSet) -> None:
    if (train.names, train.width) != (test.names, test.width):
        raise DataError(
            f"Features {name!r}: train has {train.width} numbers per sample and classes "
            f"{list_checked_names(train.names)}, test has {test.width} and "
            f"{list_checked_names(test.names)}. Extract both with one model and one class list."
        )
    if train.sample_ids == test.sample_ids and torch.equal(train.features, test.features):
        raise DataError(
            f"Features {name!r}: train and test are the same {len(test)} samples, so that a score "
            "would only measure memory. Give the test split's features as test."
        )
    known = set(train.targets.tolist())
    if len(known) < 2:
        raise DataError(
            f"Features {name!r}: all {len(train)} training samples are of the class "
            f"{train.names[known.pop()]!r}; a probe needs two classes or more. Check the labels of "
            "the train split."
        )
    unknown = sorted(set(test.targets.tolist()) - known)
    if unknown:
        logger.warning(
            "Features %r: the test split has classes that train has no sample of, which a probe "
            "cannot learn: %s. Their samples are scored as wrong.",
            name,
            list_checked_names([train.names[target] for target in unknown]),
        )


def list_checked_names(names: Sequence[str]) -> str:
    """Return the first names, quoted, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(repr, names[:_LISTED])) + more
