"""Columns of a table that go along with each sample, as they are: what probes can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_mllm.data.datasets.hf_columns import (
    CLASS_LABEL,
    INTEGER,
    TEXT,
    find_feature,
    name_feature,
)
from lightning_mllm.errors import DataError, did_you_mean

_NUMBERS = ("float", "double", "bool", "decimal")  # how the names of their types begin


def find_field_classes(
    features: Mapping[str, Any], names: Sequence[str], where: str
) -> dict[str, tuple[str, ...]]:
    """Return column -> the classes that its numbers stand for; none for other types.

    Args:
        features: Column -> its type, as plain data.
        names: The columns.
        where: What messages call the table.

    Raises:
        DataError: A column is not there, or is neither text nor a number nor a class.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        feature = find_feature(features, name)
        if feature is None:
            hint = did_you_mean(name, features).replace("\n", " ")
            raise DataError(
                f"{where}: `fields` names {name!r}, but there is no such column.{hint} The columns "
                f"are {', '.join(features)}.",
                "columns",
            )
        kind = name_feature(feature)
        if kind not in (CLASS_LABEL, INTEGER, TEXT) and not kind.startswith(_NUMBERS):
            raise DataError(
                f"{where}: `fields` names {name!r}, which has the type {kind}; a field of a sample "
                "is text, a number or a class. Name a field within it (name.field), or leave it "
                "out.",
                "columns",
            )
        found[name] = tuple(feature["names"]) if kind == CLASS_LABEL else ()
    return found
