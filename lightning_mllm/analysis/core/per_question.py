"""Analyses that look into one question after the other: rows per question, written as they come."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.forward.out_of_memory import Pieces
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import ExactMatch, KnownAnswers, Match
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.store.rows import Rows
from lightning_mllm.types import MultimodalBatch, Sample, Table

RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Question:
    """A question that is looked into.

    Attributes:
        sample_id: The sample's.
        kind: Its kind; empty without one.
        picture: Which picture it is about.
        correct: Whether the model answers it right; False where that is not known.
        first_token: Id of the token with which the model's answer begins; None where it is not asked.
        reference: The right answer; empty where it is not asked.
    """

    sample_id: str
    kind: str
    picture: str
    correct: bool
    first_token: int | None
    reference: str = ""


class QuestionAnalysis(Analysis, Generic[RowT]):
    """An analysis of one question after the other.

    Args:
        correct_only: Whether questions are left out that the model answers wrongly; they keep a row that says so.
        match: When an answer is right, see `ExactMatch`.
        label: Name of the analysis, by default its class's.

    Raises:
        ConfigError: The label is no folder name, or there is no such match.
    """

    row_type: ClassVar[type]
    default_name: ClassVar[str]
    rows: Rows[RowT]

    def __init__(self, *, correct_only: bool, match: Match, label: str) -> None:
        self.correct_only, self.match = correct_only, match
        self.name = label or self.default_name
        if self.name != Path(self.name).name:
            raise ConfigError(f"The label of an analysis names a folder, so it can't be {label!r}. Leave slashes out.")
        self._judge = ExactMatch(match=match)
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._source: Mapping[str, Any] = {}
        QuestionAnalysis.reset(self)  # what a subclass forgets with it is not there yet

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

    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse samples without a kind where only those count that are answered right."""
        self._check_kinds((sample.id, sample.kind) for sample in samples)

    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path | None = None,
        source: Mapping[str, Any] | None = None,
        share: int = 0,
        answers: KnownAnswers | None = None,
    ) -> None:
        """Get ready; see `Analysis.prepare`."""
        self.reset()
        self._tokenizer, self._source = tokenizer, source or {}
        self._answers = answers or KnownAnswers()
        self.rows = Rows(self.row_type, folder, self.making, share)

    @torch.no_grad()
    def update(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Measure the questions of a batch that have no rows yet; out of memory, fewer of them at a time."""
        new = [row for row, sample_id in enumerate(batch.sample_ids) if sample_id not in self.rows.done]
        self._pieces.run(new, len(new), lambda rows: self._take_in(backbone, batch.take(rows)))

    def merge(self) -> None:
        """Make one file of the rows of all processes."""
        self.rows.merge()

    def compute(self) -> AnalysisResult:
        """Return the result of all rows."""
        return self.summarise(self.rows.table(), self.making)

    def reset(self) -> None:
        """Forget all rows and answers; rows in a folder stay there."""
        self.rows = Rows(self.row_type)
        self._answers = KnownAnswers()
        self._pieces = Pieces("questions")

    def _take_in(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Measure the questions of a batch; none of them gets its rows before all have been measured."""
        questions = self._ask(backbone, batch)
        kept = [row for row, question in enumerate(questions) if question.correct or not self.correct_only]
        found: dict[int, Sequence[RowT]] = {row: [self.left_out(question)] for row, question in enumerate(questions)}
        if kept:
            measured = self.measure(backbone, batch.take(kept), [questions[row] for row in kept])
            found.update(zip(kept, measured, strict=True))
        self.rows.append({question.sample_id: found[row] for row, question in enumerate(questions)})

    def _ask(self, backbone: Backbone, batch: MultimodalBatch) -> list[Question]:
        """Return the questions of a batch, answered and judged."""
        self._check_kinds(zip(batch.sample_ids, batch.kinds, strict=True))
        if self._tokenizer is None:
            raise ConfigError(f"{self.name} needs the tokenizer: call prepare(tokenizer) before the first batch.")
        answers = self._answers.of(self._judge, backbone.model, self._tokenizer, batch)
        questions = []
        for sample_id, kind, picture in zip(batch.sample_ids, batch.kinds, batch.pictures, strict=True):
            answer = answers.get(sample_id)
            said = (answer.correct, answer.first_token, answer.reference) if answer else (False, None, "")
            questions.append(Question(sample_id, kind or "", picture, *said))
        return questions

    def _check_kinds(self, kinds: Iterable[tuple[str, str | None]]) -> None:
        nameless = (sample_id for sample_id, kind in kinds if kind is None)
        if self.correct_only and (sample_id := next(nameless, None)) is not None:
            raise ConfigError(
                f"{self.name} leaves out what the model answers wrongly, but sample {sample_id!r} has no kind, so its "
                "answer is not scored. Set correct_only: false, or use data whose samples have a kind."
            )
