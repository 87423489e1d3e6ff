"""What a row says of readings that are made up, and what rows count beside the numbers."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor

from lightning_mllm.analysis import Block, Case, Readings, Windows
from lightning_mllm.analysis.core.per_question import PerQuestionAnswer
from lightning_mllm.analysis.knockout.rows import FlowOptionIds, FlowRow, flow_rows
from lightning_mllm.analysis.knockout.summary import summarise_flow
from lightning_mllm.store.rows import Rows
from lightning_mllm.types import AnswerForms, Forms
from tests.support.questions import batches

TOKEN = 7  # what the clean run would say
CASES = [Case(Block.parse("image->last"), window) for window in Windows(width=1).of(2)]


def rows_of(checkpoint: str, name: str, first_token: int | None = None) -> list[FlowRow]:
    """The rows of a question in two cases, of which the first blocks something."""
    batch = batches(checkpoint, 6)[0].take([0])
    question = PerQuestionAnswer(
        sample_id=name, kind="", picture=name, correct=True, first_token=first_token
    )
    (rows,) = flow_rows([question], batch, CASES, readings(), FlowOptionIds.of([None]))
    return rows


@pytest.mark.parametrize("questions", [0, 2])
def test_each_reading_needs_its_question(tiny_llava: str, questions: int) -> None:
    batch = batches(tiny_llava, 6)[0].take([0])
    question = PerQuestionAnswer(
        sample_id="a", kind="", picture="a", correct=True, first_token=None
    )
    options = FlowOptionIds.of([None])

    with pytest.raises(ValueError, match=r"argument 2 is (shorter|longer)"):
        flow_rows([question] * questions, batch, CASES, readings(), options)


def readings() -> Readings:
    """Of one question in two cases."""
    sizes = torch.ones(1, 2, dtype=torch.long)
    ids, top = torch.tensor([[TOKEN, 0, 0, 0, 0]]), torch.tensor([[TOKEN, 8]])
    return Readings(
        ids, read(0.5, 0.4), top, read(0.25, 0.4), top, sizes, sizes, sizes > 0, "engine"
    )


def read(*cases: float) -> Tensor:
    return torch.tensor(cases).log()[None, :, None].expand(1, len(cases), 5)


def test_a_change_is_against_what_is_read_without_the_block_beside_the_case(
    tiny_llava: str,
) -> None:
    rows = rows_of(tiny_llava, "a")

    assert [row.p_before for row in rows] == pytest.approx([0.5, 0.4])
    assert [row.relative_change_percent for row in rows] == pytest.approx([-50, 0], abs=1e-4)
    assert [row.token for row in rows] == [TOKEN, TOKEN]
    assert not any(
        row.flipped for row in rows
    )  # rounding may have two clean readings say different things


def test_an_answer_that_begins_with_another_token_is_told(tiny_llava: str) -> None:
    rows = Rows(FlowRow)
    for name, first_token in (("same", TOKEN), ("other", TOKEN + 1), ("unasked", None)):
        rows.append({name: rows_of(tiny_llava, name, first_token)})

    table = rows.table()
    assert set(table["sample_id"][table["token_differs"]]) == {"other"}
    assert summarise_flow(table).settings["found"]["with_another_token"] == 1


def test_a_token_that_begins_both_options_tells_nothing() -> None:
    logprobs = torch.tensor([0.5, 0.2, 0.2, 0.1]).log()
    answers = [
        AnswerForms(Forms((0, 3), (1,)), Forms((2,), (1, 5))),  # token 1 begins both
        AnswerForms(Forms((0,), (0,)), Forms((0, 2), (0, 3))),
        AnswerForms(Forms((0,), (1,))),
        None,
    ]
    options = FlowOptionIds.of(answers)

    margins = options.margins(logprobs[options.ids][:, None])[:, 0]

    assert float(margins[0]) == pytest.approx(log(0.5 / 0.2))
    assert margins[1:].isnan().all()
