"""What an analysis found: labelled numbers, tables and the plots made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.errors import DataError
from lightning_mllm.statistics.interval import STATISTICS
from lightning_mllm.statistics.missing import Floats

_FIRST_ROWS = 8  # of a table, where the analysis does not say which are its main numbers


@dataclass(frozen=True)
class ResultPlot:
    """How a result is drawn: a panel for each coordinate of its first axis.

    Attributes:
        name: Name of the file.
        style: `lines`, with their intervals as bands, or with a single place on `x` a row for each,
            with its interval; `heat map`; or `points` on a plane, for results whose last axis is x
            and y, with a grey line between points that have `x` in common.
        x: Axis that runs to the right; for points, the axis along which they are counted.
        y: Axis with a line, a row, or a colour per coordinate.
        shown: Coordinates of `y` that are drawn, and how they are called.
        fixed: Axis -> coordinate, for each of the other axes but the last.
        xlabel: Label of the axis that runs to the right.
        label: What the values are.
        title: Title of the figure.
        over: What the intervals are taken over.
        panels: Coordinates of the first axis that have a panel; None for all.
        references: Those of `shown` that others are compared with. Alone they are no figure.
        chance: What guessing gets, if that is known.
    """

    name: str
    style: Literal["lines", "heat map", "points"]
    x: str
    y: str
    shown: Mapping[str, str]
    fixed: Mapping[str, str]
    xlabel: str
    label: str
    title: str
    over: str = "pictures"
    panels: tuple[str, ...] | None = None
    references: tuple[str, ...] = ()
    chance: float | None = None


@dataclass(frozen=True)
class PatchPicture:
    """Words, with a number each, that are drawn on the patches of a sample's picture.

    Attributes:
        name: Name of the file.
        sample_id: Id of the sample.
        words: A word per patch, in the order of its visual tokens, separators left out.
        values: A number per patch, which colours it.
        label: What the numbers are.
        title: Title of the figure.
    """

    name: str
    sample_id: str
    words: tuple[str, ...]
    values: tuple[float, ...]
    label: str
    title: str


@dataclass(frozen=True, eq=False)
class AnalysisResult:
    """Numbers and what they belong to.

    Attributes:
        name: Name of the analysis.
        values: One dimension per axis, float64; NaN where a number is not defined.
        axes: Names of the dimensions; the last is `statistic` where there are intervals.
        coords: Axis -> its coordinates, in order.
        n_samples: How many samples the numbers come from.
        settings: What decided them, as plain data.
        plots: How they are drawn.
        headline: The main numbers; by default the first rows of the table.
        pictures: What is drawn on pictures of the samples.

    Raises:
        DataError: The shape disagrees with the coordinates.
    """

    name: str
    values: Floats
    axes: tuple[str, ...]
    coords: Mapping[str, tuple[Any, ...]]
    n_samples: int
    settings: Mapping[str, Any]
    plots: tuple[ResultPlot, ...] = ()
    headline: Headline | None = None
    pictures: tuple[PatchPicture, ...] = ()

    def __post_init__(self) -> None:
        expected = tuple(len(self.coords.get(axis, ())) for axis in self.axes)
        if set(self.coords) != set(self.axes) or self.values.shape != expected:
            sizes = ", ".join(f"{axis} {len(coords)}" for axis, coords in self.coords.items())
            raise DataError(
                f"Result {self.name!r} has values of shape {self.values.shape} on the axes "
                f"{', '.join(self.axes)}, but coordinates for {sizes}. Give each axis as many "
                "coordinates as the values have there."
            )

    def at(self, **chosen: Any) -> Floats:
        """Return the values at coordinates of some axes; the other axes stay, in order.

        Raises:
            DataError: There is no such axis or coordinate.
        """
        index: list[Any] = [slice(None)] * len(self.axes)
        for axis, coordinate in chosen.items():
            if axis not in self.axes or coordinate not in self.coords[axis]:
                known = self.coords.get(axis, self.axes)
                raise DataError(
                    f"Result {self.name!r} has no {axis} {coordinate!r}; there is "
                    f"{', '.join(map(str, known))}."
                )
            index[self.axes.index(axis)] = self.coords[axis].index(coordinate)
        chosen_values: Floats = self.values[tuple(index)]
        return chosen_values

    def plot_values(self, plot: ResultPlot) -> Floats:
        """Return the values that a plot shows, (panels, lines, places, statistics)."""
        values = self.at(**plot.fixed)
        axes = [axis for axis in self.axes if axis not in plot.fixed]
        values = np.moveaxis(values, [axes.index(plot.y), axes.index(plot.x)], [1, 2])
        return values[:, [self.coords[plot.y].index(each) for each in plot.shown]]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Return the header and the rows of a table.

        There is a row for each combination of coordinates of all axes but the last.
        """
        *axes, last = self.axes
        names = [str(coordinate) for coordinate in self.coords[last]]
        rows: list[list[Any]] = []
        for index in np.ndindex(*self.values.shape[:-1]):
            where = [self.coords[axis][k] for axis, k in zip(axes, index, strict=True)]
            cells = dict(zip(names, self.values[index].tolist(), strict=True))
            rows.append(
                [*where, *(int(cell) if name == "n" else cell for name, cell in cells.items())]
            )
        return [*axes, *names], rows

    def main_numbers(self) -> Headline:
        """Return the headline; where there is none, the first rows of the table."""
        if self.headline is not None:
            return self.headline
        *axes, last = self.axes
        named = [axis for axis in axes if len(self.coords[axis]) > 1]
        of_statistics = self.coords[last] == STATISTICS
        columns = ("value", "N") if of_statistics else tuple(map(str, self.coords[last]))
        shape, rows = self.values.shape[:-1], []
        for index in [*np.ndindex(*shape)][:_FIRST_ROWS]:
            where = dict(zip(axes, index, strict=True))
            cells = [str(self.coords[axis][where[axis]]) for axis in named]
            own = self.values[index]
            if of_statistics:
                cells += [format_estimate(own), format_count(own)]
            else:
                cells += [f"{number:.4g}" for number in own.tolist()]
            rows.append(tuple(cells))
        count = int(np.prod(shape))
        caption = "All numbers." if count == len(rows) else f"{len(rows)} of {count} rows."
        return Headline(caption, (*named, *columns), tuple(rows))
