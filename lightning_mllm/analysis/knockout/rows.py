"""What is kept of a question, a block and a window.

The margin is between the two options that a question names: the log-probability that the answer begins as the right
one, in lower case or capitalised, minus that for the wrong one. Tokens with which both begin tell nothing and are left
out; where nothing is left, or there are no options, there is no margin.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.analysis.core.per_question import Question
from lightning_mllm.analysis.knockout.engine.interface import Case, Readings
from lightning_mllm.types import AnswerForms, Forms, MultimodalBatch, Segment

_WIDTH = 2  # ids per option: its lower-case and its capitalised form


@dataclass(frozen=True, kw_only=True)
class FlowRow:
    """A question, a block and a window; a question that is left out has one row, without a block.

    Attributes:
        sample_id: The question's.
        kind: Its kind.
        picture: What it is about.
        correct: Whether the model answers it right.
        measured: Whether it is looked into.
        reference: The right answer, as a JSON string.
        ceiling: Whether the whole picture is hidden from all text in all layers, to compare with.
        block: What is blocked.
        centre: Layer, from 0, after which the window is named.
        start: Its first layer.
        stop: The layer behind its last.
        control_overlap: Patches that the question's control, `image random`, shares with its object.
        source_size: Positions that become invisible.
        target_size: Positions that lose sight of them.
        empty: Whether nothing is blocked, since one of the two sets is empty, or all of the source is behind the
            target, which does not see it anyway: the row counts nowhere.
        token: What the model would say first.
        token_differs: Whether the answer that it generates begins with another one, as rounding can make it; False
            where it generates none.
        p_before: The token's probability, without the block.
        p_after: The same with the block.
        relative_change_percent: 100 (p_after - p_before) / p_before.
        logprob_change: Of its log-probability.
        flipped: Whether another token is the likeliest.
        margin_before: Log-probability that the answer begins as the right option minus that for the wrong one.
        margin_after: The same with the block.
        engine: What computed it.
    """

    sample_id: str
    kind: str
    picture: str
    correct: bool
    measured: bool = True
    reference: str = ""
    ceiling: bool = False
    block: str = ""
    centre: int = -1
    start: int = -1
    stop: int = -1
    control_overlap: int = 0
    source_size: int = 0
    target_size: int = 0
    empty: bool = False
    token: int = -1
    token_differs: bool = False
    p_before: float = nan
    p_after: float = nan
    relative_change_percent: float = nan
    logprob_change: float = nan
    flipped: bool = False
    margin_before: float = nan
    margin_after: float = nan
    engine: str = ""


@dataclass(frozen=True)
class OptionIds:
    """The tokens with which the options of a batch's questions begin.

    Attributes:
        ids: (batch, 4): two of the right option, two of the wrong one; 0 where there is none.
        there: (batch, 4) bool.
    """

    ids: Tensor
    there: Tensor

    @classmethod
    def of(cls, answers: Sequence[AnswerForms | None]) -> OptionIds:
        """Return those of the options of each question."""
        ids = torch.zeros(len(answers), 2 * _WIDTH, dtype=torch.long)
        there = torch.zeros_like(ids, dtype=torch.bool)
        for row, forms in enumerate(answers):
            if forms is None or forms.false is None:
                continue
            true, false = _beginnings(forms.true), _beginnings(forms.false)
            for first, own in ((0, true - false), (_WIDTH, false - true)):
                ids[row, first : first + len(own)] = torch.tensor(sorted(own), dtype=torch.long)
                there[row, first : first + len(own)] = True
        return cls(ids, there)

    def margins(self, logprobs: Tensor) -> Tensor:
        """Return the margin of each case, (batch, cases), from the ids' log-probabilities, (batch, cases, 4)."""
        masked = logprobs.masked_fill(~self.there[:, None], -torch.inf)
        true, false = masked[..., :_WIDTH].logsumexp(-1), masked[..., _WIDTH:].logsumexp(-1)
        has_both = self.there[:, :_WIDTH].any(1) & self.there[:, _WIDTH:].any(1)
        return (true - false).where(has_both[:, None], nan)


def flow_rows(
    questions: Sequence[Question], batch: MultimodalBatch, cases: Sequence[Case], found: Readings, options: OptionIds
) -> list[list[FlowRow]]:
    """Return the rows of each question, a row per case.

    Args:
        questions: Those of the batch.
        batch: What was read.
        cases: What was blocked.
        found: What the model said.
        options: Of the questions, as they were read behind the first id.
    """
    before, after = (each.double().cpu() for each in (found.clean_logprobs, found.logprobs))
    change = after[..., 0] - before[..., 0]  # (batch, cases)
    columns = {
        "control_overlap": _control_overlap(batch)[:, None].expand_as(change),
        "source_size": found.source_size.cpu(),
        "target_size": found.target_size.cpu(),
        "empty": ~found.acts.cpu(),
        "token": found.ids[:, :1].cpu().expand_as(change),
        "p_before": before[..., 0].exp(),
        "p_after": after[..., 0].exp(),
        "relative_change_percent": 100 * change.expm1(),
        "logprob_change": change,
        "flipped": (found.top != found.clean_top).cpu(),
        "margin_before": options.margins(before[..., 1:]),
        "margin_after": options.margins(after[..., 1:]),
    }
    names, cells = list(columns), zip(*(column.tolist() for column in columns.values()), strict=True)
    rows: list[list[FlowRow]] = []
    for question, own in zip(questions, cells, strict=True):
        numbers = (dict(zip(names, each, strict=True)) for each in zip(*own, strict=True))
        rows.append([_row(question, case, found.engine, each) for case, each in zip(cases, numbers, strict=True)])
    return rows


def row_of(question: Question, **cells: Any) -> FlowRow:
    """Return a row of a question, with the cells that are not the question's."""
    return FlowRow(
        sample_id=question.sample_id,
        kind=question.kind,
        picture=question.picture,
        correct=question.correct,
        reference=json.dumps(question.reference, ensure_ascii=False),
        **cells,
    )


def _row(question: Question, case: Case, engine: str, numbers: dict[str, Any]) -> FlowRow:
    return row_of(
        question,
        block=str(case.block),
        centre=case.window.centre,
        start=case.window.start,
        stop=case.window.stop,
        token_differs=question.first_token not in (None, numbers["token"]),
        engine=engine,
        **numbers,
    )


def _control_overlap(batch: MultimodalBatch) -> Tensor:
    """Return how many patches of the control are the object's, (batch,)."""
    control, own = (batch.spans.masks.get(each) for each in (Segment.IMAGE_RANDOM, Segment.IMAGE_OBJECT))
    if control is None or own is None:
        return torch.zeros(len(batch), dtype=torch.long)
    return (control & own).sum(1).cpu()


def _beginnings(forms: Forms) -> set[int]:
    return {tokens[0] for tokens in (forms.lower, forms.capitalised) if tokens}
