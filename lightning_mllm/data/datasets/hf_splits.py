"""Which rows of a table make up which split: by the names of its splits, or drawn from one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.data.datasets.hf_pictures import TableFacts, name_row
from lightning_mllm.data.datasets.hf_rows import HFRowReader
from lightning_mllm.data.loading.splits import SPLITS, Split, stratified_split
from lightning_mllm.errors import DataError

_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}


class HFSplit(NamedTuple):
    """Where the rows of a split come from.

    Attributes:
        name: The split of the dataset.
        drawn: The splits that it is shared among; empty if all of it is one.
    """

    name: str
    drawn: tuple[Split, ...] = ()


def find_split_names(
    given: Mapping[Split, str | None], present: Sequence[str], where: str
) -> dict[Split, HFSplit]:
    """Return where the rows of each split come from, for those that there are.

    Args:
        given: Split -> the name that was asked for.
        present: The splits of the dataset.
        where: What messages call the dataset.

    Raises:
        DataError: A split that was asked for is not there.
    """
    asked = [name for name in given.values() if name is not None]
    if unknown := [name for name in asked if name not in present]:
        listed = ", ".join(map(repr, present))
        raise DataError(f"{where} has no split {unknown[0]!r}; it has {listed}.", "split")
    if len(present) == 1 and not asked:
        return dict.fromkeys(SPLITS, HFSplit(present[0], SPLITS))
    found: dict[Split, str] = {}
    for split in SPLITS:
        taken = asked if split != "train" else []
        free = [name for name in _NAMES[split] if name in present and name not in taken]
        name = given[split] or next(iter(free), None)
        if name is not None:
            found[split] = name
    if len(present) == 1:
        found["train"] = present[0]
    splits = {split: HFSplit(name) for split, name in found.items()}
    if "train" in found and "val" not in found:
        shared = HFSplit(found["train"], ("train", "val"))
        splits |= dict.fromkeys(shared.drawn, shared)
    return splits


def draw_rows(
    reader: HFRowReader, val: float, test: float, seed: int
) -> dict[Split, NDArray[np.int64]]:
    """Split the rows of a table by seed, each class by the same fractions.

    Rows that have a picture in common, or are partners, stay together, also through other rows.

    Args:
        reader: What is known of the rows.
        val: Fraction of the validation split.
        test: Fraction of the test split.
        seed: Seed of the choice.
    """
    rows = len(reader.table)
    groups = link_rows(reader.facts, rows, _list_partners(reader))
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    names, codes = _list_labels(reader)
    strata: dict[str, list[Any]] = {}
    for group in np.split(order, starts[1:]):
        strata.setdefault(names[codes[group[0]]], []).append(group)
    parts = stratified_split(strata, val, test, seed)
    return {split: np.sort(np.array(part, np.int64)) for split, part in parts.items()}


def _list_labels(reader: HFRowReader) -> tuple[list[str], NDArray[np.int64]]:
    """Return the different labels, and per row the number of its own."""
    rows, label = len(reader.table), reader.layout.columns.label
    if not label:
        return [""], np.zeros(rows, np.int64)
    known: dict[Any, int] = {}
    codes = np.empty(rows, np.int64)
    for row, value in enumerate(reader.table.read_column(label)):
        codes[row] = known.setdefault(value, len(known))
    return list(map(str, known)), codes


def _list_partners(reader: HFRowReader) -> NDArray[np.int64]:
    """Return the rows that name a partner, and the partner's row, (2, pairs)."""
    column, own = reader.layout.columns.partner, reader.table.id
    if not column or not own:
        return np.empty((2, 0), np.int64)
    known: dict[str, int] = {}
    for row, value in enumerate(reader.table.read_column(own)):
        known.setdefault(name_row(value), row)
    known.pop("", None)  # of rows without an id
    named = [known.get(name_row(value), -1) for value in reader.table.read_column(column)]
    partners = np.array(named, np.int64)
    found = np.flatnonzero(partners >= 0)
    return np.stack([found, partners[found]])


def link_rows(
    facts: TableFacts, rows: int, pairs: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return a number per row, which rows that share a picture or are partners have in common.

    Args:
        facts: What is known of the table.
        rows: How many rows it has.
        pairs: Rows and their partners, (2, pairs).
    """
    from scipy.sparse import coo_array  # type: ignore[import-untyped]  # noqa: PLC0415
    from scipy.sparse.csgraph import (  # type: ignore[import-untyped]  # noqa: PLC0415
        connected_components,
    )

    pictures = facts.pictures
    contents = np.stack([pictures["high"], pictures["low"]], axis=1)
    _, numbers = np.unique(contents, axis=0, return_inverse=True)
    nodes = rows + int(numbers.max(initial=-1)) + 1
    ends = np.stack([pictures["row"], rows + numbers.reshape(-1)])
    if pairs is not None:
        ends = np.concatenate([ends, pairs], axis=1)
    edges = coo_array((np.ones(ends.shape[1], np.bool_), (*ends,)), shape=(nodes, nodes))
    _, found = connected_components(edges, directed=False)
    groups: NDArray[np.int64] = found[:rows].astype(np.int64)
    return groups
