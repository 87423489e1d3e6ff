"""What is kept of a question, a block and a window.

The margin is between the two options that a question names: the log-probability that the answer
begins as the right one, in lower case or capitalised, minus that for the wrong one. Tokens with
which both begin tell nothing and are left out. Where nothing is left, or there are no options,
there is no margin.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.analysis.core.per_question import PerQuestionAnswer
from lightning_mllm.analysis.knockout.engine.base import Case, Readings
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.types import AnswerForms, Forms, Segment

_WIDTH = 2  # ids per option: of its lower-case and of its capitalised form


@dataclass(frozen=True, kw_only=True)
class FlowRow:
    """A question, a block and a window; a question that is left out has one row, without a block.

    Attributes:
        sample_id: Id of the question's sample.
        kind: Kind of the question.
        picture: Name of the picture that it is about.
        correct: Whether the model answers it right.
        measured: Whether blocks are tried on it.
        reference: The right answer, as a JSON string.
        ceiling: Whether the whole picture is hidden from all text in all layers, to compare with.
        block: What is blocked.
        centre: The layer, from 0, on which the window is centred.
        start: First layer of the window.
        stop: The layer after the window's last one.
        control_overlap: Patches that the question's control, `image random`, shares with its
            object.
        source_size: Number of positions that are hidden.
        target_size: Number of positions that cannot attend to them.
        empty: Whether nothing is blocked, since one of the two sets is empty, or all of the source
            comes after the target, which does not attend to it anyway. Such a row counts nowhere.
        token: Id of the token that the model would say first.
        token_differs: Whether the answer that it generates begins with another token, as rounding
            can make it; False where it generates none.
        p_before: Probability of the token without the block.
        p_after: Probability of the token with the block.
        relative_change_percent: 100 (p_after - p_before) / p_before.
        logprob_change: Change of the token's log-probability.
        flipped: Whether another token becomes the likeliest.
        margin_before: Log-probability that the answer begins as the right option, minus that for
            the wrong one, without the block.
        margin_after: Log-probability that the answer begins as the right option, minus that for the
            wrong one, with the block.
        engine: Name of the engine that computed it.
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
class FlowOptionIds:
    """The tokens with which the options of a batch's questions begin.

    Attributes:
        ids: (batch, 4): two of the right option, two of the wrong one; 0 where there is none.
        there: (batch, 4) bool.
    """

    ids: Tensor
    there: Tensor

    @classmethod
    def of(cls, answers: Sequence[AnswerForms | None]) -> FlowOptionIds:
        """Return those of the options of each question."""
        ids = torch.zeros(len(answers), 2 * _WIDTH, dtype=torch.long)
        there = torch.zeros_like(ids, dtype=torch.bool)
        for row, forms in enumerate(answers):
            if forms is None or forms.false is None:
                continue
            true, false = _first_tokens(forms.true), _first_tokens(forms.false)
            for first, own in ((0, true - false), (_WIDTH, false - true)):
                ids[row, first : first + len(own)] = torch.tensor(sorted(own), dtype=torch.long)
                there[row, first : first + len(own)] = True
        return cls(ids, there)

    def margins(self, logprobs: Tensor) -> Tensor:
        """Return the margin of each case, (batch, cases).

        Args:
            logprobs: (batch, cases, 4), of the ids.
        """
        masked = logprobs.masked_fill(~self.there[:, None], -torch.inf)
        true, false = masked[..., :_WIDTH].logsumexp(-1), masked[..., _WIDTH:].logsumexp(-1)
        has_both = self.there[:, :_WIDTH].any(1) & self.there[:, _WIDTH:].any(1)
        return (true - false).where(has_both[:, None], nan)


def flow_rows(
    questions: Sequence[PerQuestionAnswer],
    batch: MultimodalBatch,
    cases: Sequence[Case],
    readings: Readings,
    options: FlowOptionIds,
) -> list[list[FlowRow]]:
    """Return the rows of each question, a row per case.

    Args:
        questions: Those of the batch.
        batch: What the model was run on.
        cases: What was blocked.
        readings: What the model said.
        options: The options' tokens; their log-probabilities come after that of the first id.
    """
    before, after = readings.clean_logprobs.double().cpu(), readings.logprobs.double().cpu()
    change = after[..., 0] - before[..., 0]  # (batch, cases)
    columns = {
        "control_overlap": _control_overlap(batch)[:, None].expand_as(change),
        "source_size": readings.source_size,
        "target_size": readings.target_size,
        "empty": ~readings.acts,
        "token": readings.ids[:, :1].expand_as(change),
        "p_before": before[..., 0].exp(),
        "p_after": after[..., 0].exp(),
        "relative_change_percent": 100 * change.expm1(),
        "logprob_change": change,
        "flipped": readings.top != readings.clean_top,
        "margin_before": options.margins(before[..., 1:]),
        "margin_after": options.margins(after[..., 1:]),
    }
    cells = {name: column.tolist() for name, column in columns.items()}
    rows: list[list[FlowRow]] = []
    for number, question in zip(range(len(change)), questions, strict=True):
        own = []
        for position, case in enumerate(cases):
            numbers = {name: column[number][position] for name, column in cells.items()}
            own.append(_row_of_case(question, case, readings.engine, numbers))
        rows.append(own)
    return rows


def make_flow_row(question: PerQuestionAnswer, **cells: Any) -> FlowRow:
    """Return a row of a question, with the cells that are not the question's."""
    reference = json.dumps(question.reference, ensure_ascii=False)
    return FlowRow(**question.columns, reference=reference, **cells)


def _row_of_case(
    question: PerQuestionAnswer, case: Case, engine: str, numbers: dict[str, Any]
) -> FlowRow:
    return make_flow_row(
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
    control = batch.spans.masks.get(Segment.IMAGE_RANDOM)
    own = batch.spans.masks.get(Segment.IMAGE_OBJECT)
    if control is None or own is None:
        return torch.zeros(len(batch), dtype=torch.long)
    return (control & own).sum(1).cpu()


def _first_tokens(forms: Forms) -> set[int]:
    return {tokens[0] for tokens in (forms.lower, forms.capitalised) if tokens}
