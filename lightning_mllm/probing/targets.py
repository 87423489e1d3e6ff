"""What probes read besides the class of a sample: any of its fields, as classes or as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample

LABEL = "label"  # the class that the model is asked about
_OWN = (LABEL, "kind", "answer")  # what a sample has besides its fields


def find_target_value(sample: Sample, name: str, split: str) -> Any:
    """Return a field of a sample, its label, its kind, or (`answer`) its last answer.

    Raises:
        DataError: The sample has no such field, or it is empty.
    """
    value: Any = sample.fields.get(name)
    if value is None and name == "answer" and sample.conversation:
        value = sample.conversation[-1].text.strip()
    elif value is None and name in _OWN[:2]:
        value = getattr(sample, name)
    if value is None or value == "":
        there = [each for each in (*sample.fields, *_OWN) if each != name]
        raise DataError(
            f"Sample {sample.id!r} of the {split!r} split has no {name!r}, which a probe is to "
            f"read. Fields that it may have: {', '.join(there)}. Name one that every sample has, "
            "or let the data read it (`fields` of LlavaJson and HFDataset, `metadata` of "
            "ImageFolder)."
        )
    return value


def list_target_classes(values: Mapping[str, Sequence[Any]], name: str) -> tuple[str, ...]:
    """Return the sorted classes of a field.

    Args:
        values: Split -> the field of each of its samples.
        name: The field, for messages.

    Raises:
        DataError: A value is neither text nor a whole number, or all training samples have one.
    """
    found: set[str] = set()
    for split, own in values.items():
        for value in own:
            if not isinstance(value, str | int):
                raise DataError(
                    f"The field {name!r} of the {split!r} split has {value!r}, which is no class. "
                    "Give text or whole numbers as `targets`, and numbers as `numbers`."
                )
            found.add(str(value))
    _check_differs(values["train"], name)
    return tuple(sorted(found))


def encode_target_classes(values: Sequence[Any], classes: Sequence[str]) -> Tensor:
    """Return (samples,) class indices."""
    number = {label: index for index, label in enumerate(classes)}
    return torch.tensor([number[str(value)] for value in values])


def read_target_numbers(values: Sequence[Any], ids: Sequence[str], name: str, split: str) -> Tensor:
    """Return (samples,) float64 numbers.

    Args:
        values: The field of each sample; text is read as a number.
        ids: Id of each sample.
        name: The field, for messages.
        split: The split, for messages.

    Raises:
        DataError: A value is no finite number, or all samples have the same.
    """
    numbers = []
    for sample_id, value in zip(ids, values, strict=True):
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"The field {name!r} of sample {sample_id!r} in the {split!r} split is {value!r}, "
                "where a finite number was expected. Correct it, or name the field among `targets` "
                "to have it read as a class."
            )
        numbers.append(number)
    _check_differs(numbers, name, split)
    return torch.tensor(numbers, dtype=torch.float64)


def _check_differs(values: Sequence[Any], name: str, split: str = "train") -> None:
    if len(set(map(str, values))) < 2:
        raise DataError(
            f"All {len(values)} samples of the {split!r} split have {values[0]!r} as {name!r}, so "
            "that there is nothing to tell apart. Name another field, or give other samples."
        )
