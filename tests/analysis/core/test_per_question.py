"""What an analysis of questions asks, when, and what of it is written down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from lightning_mllm.analysis.core.per_question import PerQuestionAnswer, QuestionAnalysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.evaluation import KnownAnswers, OpenAnswer
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Table
from tests.support.questions import WRONG, Examiner, batches, load, tokenizer


@dataclass(frozen=True)
class Row:
    sample_id: str
    part: int


class Parts(QuestionAnalysis[Row]):
    """Two rows per question; out of memory behind the first of several."""

    row_type = Row
    default_name: ClassVar[str] = "parts"

    def __init__(self, room: int = 99) -> None:
        super().__init__(correct_only=True, match="normalised", label="")
        self.room = room
        self.seen: list[PerQuestionAnswer] = []

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[PerQuestionAnswer]
    ) -> Iterator[list[Row]]:
        assert [question.sample_id for question in questions] == list(batch.sample_ids)
        assert [question.picture for question in questions] == list(batch.pictures)
        for number, question in enumerate(questions):
            if number and len(questions) > self.room:
                raise torch.OutOfMemoryError("full")
            self.seen.append(question)
            yield [Row(question.sample_id, part) for part in range(2)]

    def left_out(self, question: PerQuestionAnswer) -> Row:
        return Row(question.sample_id, -1)

    def summarise(self, table: Table, settings: Any) -> AnalysisResult:
        raise NotImplementedError


@pytest.fixture
def backbone(tiny_llava: str, examined: None) -> Backbone:
    return load(tiny_llava)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the samples that the model is asked about."""
    found: list[str] = []
    evaluate = Examiner.evaluate

    def noted(
        self: Examiner, model: Any, tokenizer: Any, batch: MultimodalBatch
    ) -> Sequence[OpenAnswer]:
        found.extend(batch.sample_ids)
        return evaluate(self, model, tokenizer, batch)

    monkeypatch.setattr(Examiner, "evaluate", noted)
    return found


def run(
    analysis: Parts, backbone: Backbone, parts: Sequence[MultimodalBatch], **prepared: Any
) -> Parts:
    analysis.prepare(tokenizer(backbone.model.name_or_path), **prepared)
    for batch in parts:
        analysis.update(backbone, batch)
    return analysis


def written(folder: Path) -> list[str]:
    """Return the rows of all files, without their headers."""
    files = (path.read_text().splitlines() for path in sorted(folder.glob("rows-0-*.csv")))
    return [row for header, *rows in files for row in rows]


def test_out_of_memory_while_measuring_no_question_is_lost_or_there_twice(
    backbone: Backbone, asked: list[str], tiny_llava: str, tmp_path: Path
) -> None:
    parts = batches(tiny_llava, 6)

    whole, halved = (
        run(Parts(room), backbone, parts, folder=tmp_path / str(room)) for room in (6, 1)
    )

    assert len(halved.seen) > len(whole.seen)
    assert written(tmp_path / "1") == written(tmp_path / "6")
    assert len(asked) == 2 * 6  # an answer that is known is not asked for again


def test_questions_say_how_they_were_answered(backbone: Backbone, tiny_llava: str) -> None:
    (batch,) = batches(tiny_llava, 6)

    seen = run(Parts(), backbone, [batch]).seen

    first = backbone.model(**batch.prompts().model_inputs()).logits[:, -1].argmax(-1).tolist()
    expected = zip(batch.sample_ids, batch.kinds, first, strict=True)
    assert [(each.sample_id, each.kind, each.first_token) for each in seen] == [
        each for each in expected if each[0] not in WRONG
    ]
    assert {each.correct for each in seen} == {True}
    assert [each.picture for each in seen] == [
        each.sample_id for each in seen
    ]  # the data does not say


def test_analyses_of_one_run_ask_once(
    backbone: Backbone, asked: list[str], tiny_llava: str, tmp_path: Path
) -> None:
    known, parts = KnownAnswers(), batches(tiny_llava, 2)
    run(Parts(), backbone, parts[:1], folder=tmp_path)
    asked.clear()
    both = Parts(), Parts(room=1)
    both[0].prepare(tokenizer(tiny_llava), tmp_path, answers=known)
    both[1].prepare(tokenizer(tiny_llava), answers=known)

    for batch in parts:
        for analysis in both:
            analysis.update(backbone, batch)

    assert sorted(asked) == [f"test-{number}" for number in range(6)]
    assert both[0].rows.table()["part"].tolist() == both[1].rows.table()["part"].tolist()


@pytest.mark.parametrize("begins_anew", ["prepare", "reset"])
def test_what_begins_anew_asks_anew(
    backbone: Backbone, asked: list[str], tiny_llava: str, begins_anew: str
) -> None:
    parts = batches(tiny_llava, 6)
    analysis = run(Parts(), backbone, parts)

    if begins_anew == "prepare":
        analysis.prepare(tokenizer(tiny_llava))
    else:
        analysis.reset()
    analysis.update(backbone, parts[0])

    assert len(asked) == 2 * 6
