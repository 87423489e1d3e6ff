"""What all analyses have in common: batches in, one labelled result out, rows per sample beside it.

The rhythm is that of torchmetrics, and needs no Trainer:

    analysis = InformationFlow(blocks=["question->last"])
    analysis.prepare(tokenizer, folder=Path("flow"))  # without a folder the rows stay in memory
    for batch in loader:
        analysis.update(backbone, batch)
    result = analysis.compute()

Called again with the same folder after a kill, the same lines go on where they were.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.rows import Rows, Table
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.evaluation import ExactMatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import MultimodalBatch

Floats = NDArray[np.float64]

STATISTICS = ("value", "low_95", "high_95", "n")  # coordinates of the last axis of a result that has intervals
RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Plot:
    """How a result is drawn: a panel for each coordinate of its first axis.

    Attributes:
        name: Of the file.
        style: `lines`, with their intervals as bands, or `heat map`.
        x: Axis that runs to the right.
        y: Axis with a line, or a row, per coordinate.
        shown: Coordinates of `y` that are drawn, and how they are called.
        fixed: Axis -> coordinate, for each of the other axes but the last.
        xlabel: Of the axis that runs to the right.
        label: What the values are.
        title: Stands above.
    """

    name: str
    style: Literal["lines", "heat map"]
    x: str
    y: str
    shown: Mapping[str, str]
    fixed: Mapping[str, str]
    xlabel: str
    label: str
    title: str


@dataclass(frozen=True, eq=False)
class AnalysisResult:
    """Numbers and what they are of.

    Attributes:
        name: Of the analysis.
        values: One dimension per axis, float64; NaN where a number is not defined.
        axes: Names of the dimensions; the last is `statistic` where there are intervals.
        coords: Axis -> its coordinates, in order.
        n_samples: Samples behind the numbers.
        settings: What decided them, as plain data.
        plots: How they are drawn.

    Raises:
        DataError: The shape disagrees with the coordinates.
    """

    name: str
    values: Floats
    axes: tuple[str, ...]
    coords: Mapping[str, tuple[Any, ...]]
    n_samples: int
    settings: Mapping[str, Any]
    plots: tuple[Plot, ...] = ()

    def __post_init__(self) -> None:
        expected = tuple(len(self.coords.get(axis, ())) for axis in self.axes)
        if set(self.coords) != set(self.axes) or self.values.shape != expected:
            sizes = ", ".join(f"{axis} {len(coords)}" for axis, coords in self.coords.items())
            raise DataError(
                f"Result {self.name!r} has values of shape {self.values.shape} on the axes {', '.join(self.axes)}, but "
                f"coordinates for {sizes}. Give each axis as many coordinates as the values have there."
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
                    f"Result {self.name!r} has no {axis} {coordinate!r}; there is {', '.join(map(str, known))}."
                )
            index[self.axes.index(axis)] = self.coords[axis].index(coordinate)
        chosen_values: Floats = self.values[tuple(index)]
        return chosen_values

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Return the header and the rows of a table: a row per coordinate of each axis but the last."""
        *axes, last = self.axes
        names = [str(coordinate) for coordinate in self.coords[last]]
        rows: list[list[Any]] = []
        for index in np.ndindex(*self.values.shape[:-1]):
            where = [self.coords[axis][k] for axis, k in zip(axes, index, strict=True)]
            cells = dict(zip(names, self.values[index].tolist(), strict=True))
            rows.append([*where, *(int(cell) if name == "n" else cell for name, cell in cells.items())])
        return [*axes, *names], rows


class Analysis(ABC):
    """An experiment on a model: batch by batch, then a result."""

    name: str
    """Names the files; two analyses of one run have different ones."""

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """The options that decide the result, as plain data."""

    @abstractmethod
    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path | None = None,
        source: Mapping[str, Any] | None = None,
        share: int = 0,
    ) -> None:
        """Get ready for the first batch, or, where the folder has results of samples, for the one behind them.

        Args:
            tokenizer: The model's.
            folder: For the results of single samples, of all processes; without it they stay in memory.
            source: Which model and data these are: plain data, and part of the result's settings.
            share: Number of this process.

        Raises:
            ConfigError: What is in the folder was made otherwise.
        """

    @abstractmethod
    def update(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Take in a batch."""

    @abstractmethod
    def merge(self) -> None:
        """Put together what all processes have found; one of them does, when all have finished."""

    @abstractmethod
    def compute(self) -> AnalysisResult:
        """Return the result of all batches so far, of all processes where they have a folder."""

    @abstractmethod
    def reset(self) -> None:
        """Forget all batches; what is in a folder stays there."""


@dataclass(frozen=True)
class Question:
    """A question that is looked into.

    Attributes:
        sample_id: The sample's.
        kind: Its kind; empty without one.
        correct: Whether the model answers it right; False where that is not known.
    """

    sample_id: str
    kind: str
    correct: bool


class QuestionAnalysis(Analysis, Generic[RowT]):
    """An analysis of one question after the other: rows per question, written as they come.

    Args:
        correct_only: Whether questions are left out that the model answers wrongly; they keep a row that says so.
        label: Name of the analysis, by default its class's.
    """

    row_type: ClassVar[type]
    default_name: ClassVar[str]

    def __init__(self, correct_only: bool, label: str) -> None:
        self.correct_only = correct_only
        self.name = label or self.default_name
        if self.name != Path(self.name).name:
            raise ConfigError(f"The label of an analysis names a folder, so it can't be {label!r}. Leave slashes out.")
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._source: Mapping[str, Any] = {}
        self.rows: Rows[RowT] = Rows(self.row_type)

    @abstractmethod
    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[Question]
    ) -> Iterable[Sequence[RowT]]:
        """Yield the rows of each sample of a batch, in order."""

    @abstractmethod
    def left_out(self, question: Question) -> RowT:
        """Return the one row of a question that is left out."""

    @abstractmethod
    def summarise(self, table: Table, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the result of rows."""

    @property
    def making(self) -> dict[str, Any]:
        """What decides the rows: settings and source."""
        return {"analysis": dict(self.settings), "source": dict(self._source)}

    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path | None = None,
        source: Mapping[str, Any] | None = None,
        share: int = 0,
    ) -> None:
        """Get ready; see `Analysis.prepare`."""
        self.reset()
        self._tokenizer, self._source = tokenizer, source or {}
        self.rows = Rows(self.row_type, folder, self.making, share)

    @torch.no_grad()
    def update(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Measure the questions of a batch that have no rows yet."""
        new = [row for row, sample_id in enumerate(batch.sample_ids) if sample_id not in self.rows.done]
        if not new:
            return
        batch = batch if len(new) == len(batch) else batch.take(new)
        questions = self._ask(backbone, batch)
        kept = [row for row, question in enumerate(questions) if question.correct or not self.correct_only]
        for row in sorted({*range(len(batch))} - {*kept}):
            self.rows.append(questions[row].sample_id, [self.left_out(questions[row])])
        if kept:
            asked = [questions[row] for row in kept]
            measured = self.measure(backbone, batch if len(kept) == len(batch) else batch.take(kept), asked)
            for question, rows in zip(asked, measured, strict=True):
                self.rows.append(question.sample_id, rows)

    def merge(self) -> None:
        """Make one file of the rows of all processes."""
        self.rows.merge()

    def compute(self) -> AnalysisResult:
        """Return the result of all rows."""
        return self.summarise(self.rows.table(), self.making)

    def reset(self) -> None:
        """Forget all rows; those in a folder stay there."""
        self.rows = Rows(self.row_type)

    def _ask(self, backbone: Backbone, batch: MultimodalBatch) -> list[Question]:
        """Return the questions of a batch, answered and judged."""
        kinds = dict(zip(batch.sample_ids, batch.kinds, strict=True))
        if self.correct_only and (unknown := [sample_id for sample_id, kind in kinds.items() if kind is None]):
            raise ConfigError(
                f"{self.name} leaves out what the model answers wrongly, but sample {unknown[0]!r} has no kind, so its "
                "answer is not scored. Set correct_only: false, or use data whose samples have a kind."
            )
        if self._tokenizer is None:
            raise ConfigError(f"{self.name} needs the tokenizer: call prepare(tokenizer) before the first batch.")
        answers = ExactMatch().evaluate(backbone.model, self._tokenizer, batch)
        correct = {answer.sample_id: answer.correct for answer in answers}
        return [Question(sample_id, kind or "", correct.get(sample_id, False)) for sample_id, kind in kinds.items()]
