"""Analyses that look at one question after the other: rows per question, written as they come."""

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
from lightning_mllm.analysis.forward.out_of_memory import MemoryPieces
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import ExactMatch, KnownAnswers, Match
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.statistics.picture_bootstrap import Bootstrap
from lightning_mllm.store.rows import Rows
from lightning_mllm.types import Sample, Table

RowT = TypeVar("RowT")


@dataclass(frozen=True)
class PerQuestionAnswer:
    """A question, and how the model answers it.

    Attributes:
        sample_id: Id of the sample.
        kind: Kind of the question; empty without one.
        picture: Name of the picture that it is about.
        correct: Whether the model answers it right; False where that is not known.
        first_token: Id of the token with which the model's answer begins; None where it is not
            asked.
        reference: The right answer; empty where it is not asked.
    """

    sample_id: str
    kind: str
    picture: str
    correct: bool
    first_token: int | None
    reference: str = ""

    @property
    def columns(self) -> dict[str, Any]:
        """The columns with which each of its rows begins."""
        return {
            "sample_id": self.sample_id,
            "kind": self.kind,
            "picture": self.picture,
            "correct": self.correct,
        }


class AnsweredAnalysis(Analysis, Generic[RowT]):
    """An analysis that asks the model its questions first, and keeps rows of each.

    These are the options that such analyses share; each lists those that it has in its own
    signature, from where the command line takes them.

    Args:
        correct_only: Whether questions are left out that the model answers wrongly. They keep a row
            that says so.
        match: When an answer is right, see `ExactMatch`.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default
            all.
        bootstrap: How intervals are drawn.
        label: Name of the analysis, by default its class's.

    Raises:
        ConfigError: The label is no folder name, or there is no such match.
    """

    row_type: ClassVar[type]
    rows: Rows[RowT]

    def __init__(
        self,
        *,
        correct_only: bool,
        match: Match,
        kind_depth: int | None = None,
        bootstrap: Bootstrap = Bootstrap(),
        label: str = "",
    ) -> None:
        super().__init__(label=label)
        self.correct_only, self.match = correct_only, match
        self.kind_depth, self.bootstrap = kind_depth, bootstrap
        self._judge = ExactMatch(match=match)
        AnsweredAnalysis.reset(self)  # what a subclass forgets besides is not there yet

    @abstractmethod
    def summarise(self, table: Table, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the result of rows."""

    @property
    def shared_settings(self) -> dict[str, Any]:
        """Which questions count, as a part of the settings."""
        return {"correct_only": self.correct_only, "match": self.match}

    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path | None = None,
        source: Mapping[str, Any] | None = None,
        rank: int = 0,
        answers: KnownAnswers | None = None,
    ) -> None:
        """Get ready; see `Analysis.prepare`."""
        self.reset()
        self._tokenizer, self._source = tokenizer, source or {}
        self._answers = answers or KnownAnswers()
        self.rows = Rows(self.row_type, folder, self.making, rank)

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
        self._pieces = MemoryPieces("questions")

    def _ask(self, backbone: Backbone, batch: MultimodalBatch) -> list[PerQuestionAnswer]:
        """Return the questions of a batch, answered and judged."""
        columns = zip(batch.sample_ids, batch.kinds, batch.pictures, strict=True)
        self._check_kinds(zip(batch.sample_ids, batch.kinds, strict=True))
        answers = self._answers.of(self._judge, backbone.model, self.tokenizer, batch)
        questions = []
        for sample_id, kind, picture in columns:
            answer = answers.get(sample_id)
            questions.append(
                PerQuestionAnswer(
                    sample_id,
                    kind or "",
                    picture,
                    correct=answer.correct if answer else False,
                    first_token=answer.first_token if answer else None,
                    reference=answer.reference if answer else "",
                )
            )
        return questions

    def _check_kinds(self, kinds: Iterable[tuple[str, str | None]]) -> None:
        nameless = (sample_id for sample_id, kind in kinds if kind is None)
        if self.correct_only and (sample_id := next(nameless, None)) is not None:
            raise ConfigError(
                f"{self.name} leaves out what the model answers wrongly, but sample {sample_id!r} "
                "has no kind, so its answer is not scored. Set correct_only to false "
                "(--analysis.correct_only false), or use data whose samples have a kind."
            )


class QuestionAnalysis(AnsweredAnalysis[RowT]):
    """An analysis of one question after the other, see `AnsweredAnalysis` for its options."""

    @abstractmethod
    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[PerQuestionAnswer]
    ) -> Iterable[Sequence[RowT]]:
        """Yield the rows of each sample of a batch, in order."""

    @abstractmethod
    def left_out(self, question: PerQuestionAnswer) -> RowT:
        """Return the one row of a question that is left out."""

    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse samples without a kind where only those count that are answered right."""
        self._check_kinds((sample.id, sample.kind) for sample in samples)

    @torch.no_grad()
    def update(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Measure the questions of a batch that have no rows yet.

        Out of memory, fewer of them are measured at a time.
        """
        self.check_model(backbone)
        new = []
        for row, sample_id in enumerate(batch.sample_ids):
            if sample_id not in self.rows.done:
                new.append(row)
        self._pieces.run(new, len(new), lambda rows: self._take_in(backbone, batch.take(rows)))

    def explain_nothing(self) -> str:
        """Return that no question was answered right, and what can be done."""
        return (
            f"{self.name} has measured none of {len(self.rows.done)} questions, because the model "
            "answers none of them right and correct_only leaves wrong ones out. Train the model "
            "longer, ask easier questions, or set correct_only to false (--analysis.correct_only "
            "false)."
        )

    def _take_in(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Measure the questions of a batch; rows are written when all have been measured."""
        questions = self._ask(backbone, batch)
        found: dict[int, Sequence[RowT]] = {}
        kept = []
        for row, question in enumerate(questions):
            if question.correct or not self.correct_only:
                kept.append(row)
            else:
                found[row] = [self.left_out(question)]
        if kept:
            measured = self.measure(backbone, batch.take(kept), [questions[row] for row in kept])
            found.update(zip(kept, measured, strict=True))
        self.rows.append({question.sample_id: found[row] for row, question in enumerate(questions)})
