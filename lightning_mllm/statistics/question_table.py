"""Rows per question as arrays: which questions count, of which kind they are, and their numbers.

A table has rows of questions, several of each question, and the columns `sample_id`, `kind`,
`picture` and `measured`: a question that is left out has one row, in which `measured` is False.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.errors import DataError
from lightning_mllm.statistics.missing import Floats, Integers
from lightning_mllm.types import Table

ALL = "all"  # the kind that holds all kinds, where there are several


@dataclass(frozen=True, eq=False)
class KeptQuestions:
    """The questions that count.

    Attributes:
        ids: (questions,), sorted.
        pictures: (questions,), what each is about.
        groups: Kind -> its questions, sorted by kind, and all of them where there are several
            kinds.
    """

    ids: NDArray[Any]
    pictures: NDArray[Any]
    groups: Mapping[str, Integers]

    @classmethod
    def of(cls, table: Table, depth: int | None = None) -> KeptQuestions:
        """Find them in rows.

        Args:
            table: The rows of the questions.
            depth: How many parts of a kind's name, between slashes, tell kinds apart; by default
                all.
        """
        measured = table["measured"]
        ids, first = np.unique(table["sample_id"][measured], return_index=True)
        groups = group_table_by_kind(table["kind"][measured][first], depth)
        return cls(ids, table["picture"][measured][first], groups)

    def count_pictures(self) -> dict[str, int]:
        """Return how many pictures the questions of each kind are about."""
        return {kind: len(np.unique(self.pictures[rows])) for kind, rows in self.groups.items()}


def group_table_by_kind(kinds: NDArray[Any], depth: int | None = None) -> dict[str, Integers]:
    """Return the questions of each kind, sorted, and of all where there are several kinds.

    Args:
        kinds: (questions,).
        depth: How many parts of a kind's name, between slashes, tell kinds apart; by default all.
    """
    names = np.array([kind_in_question_table(kind, depth) for kind in kinds], dtype=np.str_)
    found = {str(name): np.flatnonzero(names == name) for name in np.unique(names)}
    return {ALL: np.arange(len(names)), **found} if len(found) != 1 else found


def count_questions(table: Table, depth: int | None = None) -> dict[str, dict[str, int]]:
    """Return per kind how many questions were asked, and how many of them count."""
    _, first = np.unique(table["sample_id"], return_index=True)
    asked, kept = Counter[str](), Counter[str]()
    for name, measured in zip(table["kind"][first], table["measured"][first], strict=True):
        kind = kind_in_question_table(name, depth)
        asked[kind] += 1
        kept[kind] += int(measured)
    return {kind: {"asked": asked[kind], "kept": kept[kind]} for kind in sorted(asked)}


def kind_in_question_table(name: str, depth: int | None) -> str:
    """Return the first parts of a kind's name; a kind that is called "all" is put in quotes.

    Args:
        name: The kind's name, which has slashes between its parts.
        depth: How many parts; None for all.
    """
    kind = "/".join(str(name).split("/")[:depth])
    return f"'{kind}'" if kind == ALL else kind


def pivot_question_table(
    table: Table,
    column: str,
    axes: Mapping[str, Sequence[Any]],
    questions: NDArray[Any],
    where: NDArray[np.bool_],
) -> Floats:
    """Return the numbers of a column as (questions, *axes); NaN where there is none.

    Args:
        table: The rows of the questions.
        column: Which column has the numbers.
        axes: Column -> its values, in order.
        questions: Sample ids of the questions, sorted.
        where: (rows,) which rows count.
    """
    values = np.full((len(questions), *map(len, axes.values())), np.nan)
    index = [np.searchsorted(questions, table["sample_id"][where])]
    for name, coordinates in axes.items():
        order = np.argsort(np.asarray(coordinates))
        index.append(order[np.searchsorted(np.asarray(coordinates)[order], table[name][where])])
    values[tuple(index)] = table[column][where]
    return values


def common_questions(tables: Mapping[str, Table]) -> dict[str, Table]:
    """Keep the questions that count in each of several runs: those that all models answer right.

    Args:
        tables: Name of the run -> rows.

    Raises:
        DataError: There is no such question.
    """
    asked = [np.unique(table["sample_id"][table["measured"]]) for table in tables.values()]
    common = reduce(np.intersect1d, asked)
    if not len(common):
        counts = zip(tables, asked, strict=True)
        sizes = ", ".join(f"{name} {len(ids)}" for name, ids in counts)
        raise DataError(
            f"The runs have no question in common that each looked into; there are {sizes}."
        )
    found: dict[str, Table] = {}
    for name, table in tables.items():
        kept = np.isin(table["sample_id"], common)
        found[name] = {column: cells[kept] for column, cells in table.items()}
    return found
