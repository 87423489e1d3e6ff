"""Answers by sample as arrays, in which the samples of all seeds have their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_mllm.errors import DataError
from lightning_mllm.statistics.missing import Integers

INVALID = -1  # an answer that is not a class
ABSENT = -2  # a sample that is not in the test split of this seed

Answers = Mapping[str, str]  # sample id -> class; an empty one is invalid
OfSeed = tuple[Answers, Sequence[Answers]]  # the true classes, and the answers of each repetition


def make_answer_arrays(
    models: Mapping[Any, Sequence[OfSeed]],
) -> tuple[Integers, dict[Any, Integers]]:
    """Turn answers by sample into arrays in which the samples of all seeds have their place.

    Args:
        models: Name -> per seed (the same seeds for all): the true classes by sample id, and the
            answers of each repetition; an empty answer is invalid.

    Returns:
        Targets, (samples,), and by model the predictions, (seeds, repetitions, samples).

    Raises:
        DataError: Models were not tested on the same samples, or classes of a sample disagree.
    """
    targets = _common_targets(models)
    labels = {*targets.values(), *_labels_said(models)} - {""}
    codes = {label: code for code, label in enumerate(sorted(labels))} | {"": INVALID}
    order = sorted(targets)
    predictions: dict[Any, Integers] = {}
    for name, seeds in models.items():
        by_seed = []
        for _, said in seeds:
            by_seed.append([_encode(answers, order, codes) for answers in said])
        predictions[name] = np.array(by_seed)
    return np.array([codes[targets[sample]] for sample in order]), predictions


def _common_targets(models: Mapping[Any, Sequence[OfSeed]]) -> dict[str, str]:
    """Return the true class of each sample of all seeds; refuse models that differ in them."""
    targets: dict[str, str] = {}
    reference: Sequence[OfSeed] = next(iter(models.values()), ())
    for name, seeds in models.items():
        for index, (truth, _) in enumerate(seeds):
            first = reference[index][0]
            differs = any(targets.get(sample, label) != label for sample, label in truth.items())
            if truth != first or differs:
                raise DataError(
                    f"{name} was tested on other samples than the models it is compared with "
                    f"({len(truth)} and {len(first)} samples), or their classes differ. Run all "
                    "cells of a domain on the same data."
                )
            targets.update(truth)
    return targets


def _labels_said(models: Mapping[Any, Sequence[OfSeed]]) -> Iterator[str]:
    """Yield every answer of every model."""
    for seeds in models.values():
        for _, said in seeds:
            for answers in said:
                yield from answers.values()


def _encode(answers: Answers, order: Sequence[str], codes: Mapping[str, int]) -> list[int]:
    """Return the numbers of answers, `ABSENT` where a sample has none."""
    return [codes[answers[sample]] if sample in answers else ABSENT for sample in order]
