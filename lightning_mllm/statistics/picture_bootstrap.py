"""From rows per question to numbers with intervals: 95 % of a paired bootstrap over pictures.

Questions about one picture are not independent. So a resample draws pictures, and each brings all its questions: where
every question has a picture of its own, this is the bootstrap over questions. Paired: each question brings all its
numbers along, so that every block, window and layer is seen on the same questions. Differences between two of them are
then as sure as the questions allow. The draws depend on nothing but the seed, the kind and which questions share a
picture: two models that were asked the same questions are paired as well.

Of shares, such as the flipped or the right answers, resamples are all alike where none or all are: their intervals, and
those of their differences and ratios, are score intervals over pictures (`evaluation.shares`).

A number that a question does not have (an empty set of positions, no options) is NaN, and is counted nowhere: each
statistic has its own N, the number of questions. Where their pictures are fewer than two there is no interval: its ends
are NaN. All in float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.statistics import shares
from lightning_mllm.store.seeds import numpy_generator
from lightning_mllm.types import Table

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Statistic = Callable[[Floats], Floats]  # (resamples, questions) weights -> (resamples, numbers)

ALL = "all"  # the kind that holds all kinds, where there are several


@dataclass(frozen=True, eq=False)
class Draws:
    """Resamples of some questions.

    Attributes:
        weights: (resamples, questions), how often each resample has each question.
        pictures: (questions,), the number of the picture that a question is about.
    """

    weights: Floats
    pictures: NDArray[np.int64]


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn.

    Attributes:
        resamples: How many.
        seed: Of the drawing.
    """

    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise ConfigError(f"A bootstrap needs one resample or more, not {self.resamples}.")

    def draw(self, pictures: NDArray[Any], key: str = "") -> Draws:
        """Draw as many pictures as there are, with all questions about each.

        Args:
            pictures: (questions,), what each question is about.
            key: Resamples of different keys have nothing to do with each other.
        """
        _, first, which = np.unique(pictures, return_index=True, return_inverse=True)
        numbers = first.argsort().argsort()[which]  # in the order of the questions, whatever the pictures are called
        generator = numpy_generator(self.seed, key)
        drawn = generator.multinomial(len(first), np.full(len(first), 1 / len(first)), size=self.resamples)
        return Draws(drawn[:, numbers].astype(np.float64), numbers)


@dataclass(frozen=True, eq=False)
class Kept:
    """The questions that are looked into.

    Attributes:
        ids: (questions,), sorted.
        pictures: (questions,), what each is about.
        groups: Kind -> its questions, sorted by kind, and all of them where there are several kinds.
    """

    ids: NDArray[Any]
    pictures: NDArray[Any]
    groups: Mapping[str, NDArray[np.int64]]

    @classmethod
    def of(cls, table: Table, depth: int | None = None) -> Kept:
        """Find them in rows.

        Args:
            table: Rows.
            depth: How many parts of a kind's name, between slashes, tell kinds apart; by default all.
        """
        measured = table["measured"]
        ids, first = np.unique(table["sample_id"][measured], return_index=True)
        return cls(ids, table["picture"][measured][first], members(table["kind"][measured][first], depth))

    def count_pictures(self) -> dict[str, int]:
        """Return how many pictures the questions of each kind are about."""
        return {kind: len(np.unique(self.pictures[rows])) for kind, rows in self.groups.items()}


def mean(values: Floats) -> Statistic:
    """Return the mean over questions of (questions, numbers) values."""
    there, filled = _there(values)
    return lambda weights: _divide(weights @ filled, weights @ there)


def ratio_of_means(numerators: Floats, denominators: Floats) -> Statistic:
    """Return the mean of (questions, numbers) numerators over that of the denominators, of the same questions."""
    there = ~(np.isnan(numerators) | np.isnan(denominators))
    above, below = (np.where(there, values, 0.0) for values in (numerators, denominators))
    return lambda weights: _divide(weights @ above, weights @ below)


def median(values: Floats) -> Statistic:
    """Return the median over questions of (questions, numbers) values: of an even number the mean of the middle two."""

    def of(weights: Floats) -> Floats:
        counts = np.ascontiguousarray(weights.T.astype(np.int32))
        return np.stack([_weighted_median(column, counts) for column in values.T], axis=1)

    return of


def estimate(statistic: Statistic, values: Floats, draws: Draws) -> Floats:
    """Return value, ends of the 95 % interval and N of each number, (numbers, 4).

    The ends are NaN where all questions that have the number are about one picture.

    Args:
        statistic: The statistic of the values.
        values: (questions, numbers), for N.
        draws: From `Bootstrap.draw`, of the same questions.
    """
    return _with_ends(statistic, interval(statistic(draws.weights)), values, draws.pictures, 1)


def difference(ours: Statistic, theirs: Statistic, values: Floats, draws: Draws) -> Floats:
    """Return the same of the difference of two statistics, in which each resample has the same questions for both.

    Args:
        ours: What is compared.
        theirs: With what.
        values: (questions, numbers), NaN where one of the two is: both are to be of the others only.
        draws: From `Bootstrap.draw`, of the same questions.
    """
    return estimate(lambda weights: ours(weights) - theirs(weights), values, draws)


def share(counted: Floats, pictures: Integers, scale: float = 1) -> Floats:
    """Return value, ends and N of shares, (numbers, 4), of what `share_interval` takes; in percent if scale is 100."""
    return _with_ends(mean(counted), shares.share_interval(counted, pictures), counted, pictures, scale)


def share_difference(ours: Floats, theirs: Floats, pictures: Integers, scale: float = 1) -> Floats:
    """Return the same of differences of shares, in the questions that have both."""
    ends = shares.share_difference_interval(ours, theirs, pictures)
    return _with_ends(mean(ours - theirs), ends, ours - theirs, pictures, scale)


def share_ratio(ours: Floats, theirs: Floats, pictures: Integers, scale: float = 1) -> Floats:
    """Return the same of ratios of shares, in the questions that have both."""
    ends = shares.share_ratio_interval(ours, theirs, pictures)
    return _with_ends(ratio_of_means(ours, theirs), ends, ours + theirs, pictures, scale)


def interval(resampled: Floats) -> Floats:
    """Return the 2.5 and 97.5 % quantiles of (resamples, numbers), (2, numbers), of the resamples that have one."""
    defined = ~np.isnan(resampled).all(axis=0)
    ends = np.full((2, resampled.shape[1]), np.nan)
    ends[:, defined] = np.nanquantile(resampled[:, defined], (0.025, 0.975), axis=0)
    return ends


def members(kinds: NDArray[Any], depth: int | None = None) -> dict[str, NDArray[np.int64]]:
    """Return the questions of each kind, sorted, and of all where there are several kinds.

    Args:
        kinds: (questions,).
        depth: How many parts of a kind's name, between slashes, tell kinds apart; by default all.
    """
    names = np.array([kind_of(kind, depth) for kind in kinds], dtype=np.str_)
    found = {str(name): np.flatnonzero(names == name) for name in np.unique(names)}
    return {ALL: np.arange(len(names)), **found} if len(found) != 1 else found


def count_questions(table: Table, depth: int | None = None) -> dict[str, dict[str, int]]:
    """Return per kind how many questions were asked, and how many of them looked into."""
    _, first = np.unique(table["sample_id"], return_index=True)
    kinds, measured = table["kind"][first], table["measured"][first]
    asked, kept = (Counter(kind_of(kind, depth) for kind in each) for each in (kinds, kinds[measured]))
    return {kind: {"asked": asked[kind], "kept": kept[kind]} for kind in sorted(asked)}


def kind_of(name: str, depth: int | None) -> str:
    """Return the first parts of a kind's name, which has slashes between them; one called "all" is put in quotes."""
    kind = "/".join(str(name).split("/")[:depth])
    return f"'{kind}'" if kind == ALL else kind


def pivot(
    table: Table, column: str, axes: Mapping[str, Sequence[Any]], questions: NDArray[Any], where: NDArray[np.bool_]
) -> Floats:
    """Return the numbers of a column as (questions, *axes); NaN where there is none.

    Args:
        table: Rows.
        column: The numbers.
        axes: Column -> its values, in order.
        questions: Sample ids, sorted.
        where: (rows,) which rows count.
    """
    values = np.full((len(questions), *map(len, axes.values())), np.nan)
    index = [np.searchsorted(questions, table["sample_id"][where])]
    for name, coordinates in axes.items():
        order = np.argsort(np.asarray(coordinates))
        index.append(order[np.searchsorted(np.asarray(coordinates)[order], table[name][where])])
    values[tuple(index)] = table[column][where]
    return values


def no_numbers(coords: Mapping[str, Sequence[Any]]) -> Floats:
    """Return NaN for each place, with an N of 0; the last axis is value, low_95, high_95 and n."""
    values = np.full(tuple(map(len, coords.values())), np.nan)
    values[..., 3] = 0
    return values


def common_questions(tables: Mapping[str, Table]) -> dict[str, Table]:
    """Keep the questions that were looked into in each of several runs: those that all the models answer right.

    Args:
        tables: Name of the run -> rows.

    Raises:
        DataError: There is no such question.
    """
    asked = [np.unique(table["sample_id"][table["measured"]]) for table in tables.values()]
    common = reduce(np.intersect1d, asked)
    if not len(common):
        sizes = ", ".join(f"{name} {len(ids)}" for name, ids in zip(tables, asked, strict=True))
        raise DataError(f"The runs have no question in common that each looked into; there are {sizes}.")
    kept = {name: np.isin(table["sample_id"], common) for name, table in tables.items()}
    return {name: {column: cells[kept[name]] for column, cells in table.items()} for name, table in tables.items()}


def _there(values: Floats) -> tuple[Floats, Floats]:
    """Return 1 where there is a value, and the values with 0 where there is none."""
    there = ~np.isnan(values)
    return there.astype(np.float64), np.where(there, values, 0.0)


def _with_ends(statistic: Statistic, ends: Floats, values: Floats, pictures: Integers, scale: float) -> Floats:
    """Return value, ends and N, (numbers, 4); the ends are NaN where all questions are about one picture."""
    observed, there = statistic(np.ones((1, len(values))))[0], ~np.isnan(values)
    kept = np.where(_several(pictures, there), ends, np.nan)
    return np.stack([scale * observed, *(scale * kept), there.sum(axis=0)], axis=1)


def _several(pictures: NDArray[np.int64], there: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return for which numbers (questions, numbers) the questions that have them are about two pictures or more."""
    lowest = np.where(there, pictures[:, None], len(pictures)).min(axis=0)
    highest = np.where(there, pictures[:, None], -1).max(axis=0)
    several: NDArray[np.bool_] = highest > lowest
    return several


def _divide(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)


def _weighted_median(values: Floats, counts: NDArray[np.int32]) -> Floats:
    """Return the median of each resample of (questions,) values, (resamples,).

    Args:
        values: NaN where there is none.
        counts: (questions, resamples), how often each question is drawn.
    """
    kept = np.flatnonzero(~np.isnan(values))
    ordered = kept[np.argsort(values[kept], kind="stable")]
    if not len(ordered):
        return np.full(counts.shape[1], np.nan)
    up_to = counts[ordered].cumsum(axis=0, dtype=np.int32)
    drawn = up_to[-1]
    middle = [(up_to <= place).sum(axis=0) for place in ((drawn - 1) // 2, drawn // 2)]
    # a resample without any value points behind the last one
    lower, upper = (values[ordered][np.minimum(place, len(ordered) - 1)] for place in middle)
    return np.where(drawn > 0, (lower + upper) / 2, np.nan)
