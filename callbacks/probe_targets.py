"""Reads what probes are to tell of each sample: its class, and fields as classes or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L

from lightning_mllm.callbacks.trainer_state import trainer_class_names
from lightning_mllm.callbacks.watched_split import watched_samples
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.probing import FeatureSet
from lightning_mllm.probing.features.extraction import ExtractedSamples
from lightning_mllm.probing.probes.numbers import ProbedNumbers
from lightning_mllm.probing.targets import (
    LABEL,
    encode_target_classes,
    find_target_value,
    list_target_classes,
    read_target_numbers,
)

Sets = dict[str, FeatureSet]  # name of the point -> features


@dataclass(frozen=True)
class ProbeSplit:
    """A split whose features are extracted.

    Attributes:
        name: Name of the split.
        found: What was read of its samples.
    """

    name: Split
    found: ExtractedSamples


class ProbeTargets:
    """Looks up the fields of samples, which do not change while a model is trained."""

    def __init__(self) -> None:
        self._values: dict[tuple[Split, str], dict[str, Any]] = {}  # of each sample, by its id
        self._pictures: dict[Split, dict[str, str]] = {}
        self._data: Any = None  # the dataset that these are of

    def label(
        self, trainer: L.Trainer, name: str, train: ProbeSplit, test: ProbeSplit
    ) -> tuple[Sets, Sets]:
        """Return the features of both splits, with the classes of a field.

        Raises:
            ConfigError: It is the label, and the data has none.
            DataError: A sample has no such field, it is no class, or always the same.
        """
        if name == LABEL:
            names = trainer_class_names(trainer)
            return train.found.label(names), test.found.label(names)
        values: dict[str, list[Any]] = {}
        for each in (train, test):
            values[each.name] = self._look_up(trainer, name, each)
        names = list_target_classes(values, name)
        sets = []
        for each in (train, test):
            sets.append(each.found.label(names, encode_target_classes(values[each.name], names)))
        return sets[0], sets[1]

    def number(self, trainer: L.Trainer, name: str, split: ProbeSplit) -> ProbedNumbers:
        """Return the features of a split, with a field as a number.

        Raises:
            DataError: A sample has no such field, it is no number, or always the same.
        """
        ids = split.found.sample_ids
        values = self._look_up(trainer, name, split)
        pictures = self.pictures(trainer, split.name)
        return ProbedNumbers(
            features=split.found.vectors,
            numbers=read_target_numbers(values, ids, name, split.name),
            sample_ids=ids,
            pictures=tuple(pictures[sample_id] for sample_id in ids),
        )

    def pictures(self, trainer: L.Trainer, split: Split) -> Mapping[str, str]:
        """Return sample id -> the picture that it is about, for the samples of a split."""
        self._forget_other_data(trainer)
        if split not in self._pictures:
            samples = watched_samples(trainer, split)
            self._pictures[split] = {each.id: each.picture or each.id for each in samples}
        return self._pictures[split]

    def _forget_other_data(self, trainer: L.Trainer) -> None:
        """Forget what was looked up in another dataset, such as that of an earlier test."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data is not self._data:
            self._values, self._pictures, self._data = {}, {}, data

    def _look_up(self, trainer: L.Trainer, name: str, split: ProbeSplit) -> list[Any]:
        self._forget_other_data(trainer)
        key = (split.name, name)
        if key not in self._values:
            found = {}
            for sample in watched_samples(trainer, split.name):
                found[sample.id] = find_target_value(sample, name, split.name)
            self._values[key] = found
        return [self._values[key][sample_id] for sample_id in split.found.sample_ids]
