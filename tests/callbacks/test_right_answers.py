from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from lightning_mllm.callbacks.right_answers import OPEN, RightAnswers
from lightning_mllm.evaluation import Predictions


def outputs(*predicted: int) -> dict[str, Any]:
    found = Predictions(("",) * len(predicted), torch.tensor(predicted))
    return {"predictions": {"likelihood": found}, "answers": ()}


def batch(*targets: int, first: int = 0) -> Any:
    ids = tuple(f"s{first + k}" for k in range(len(targets)))
    return SimpleNamespace(targets=torch.tensor(targets), sample_ids=ids)


def test_answers_of_all_batches_are_kept_by_scorer_and_sample() -> None:
    answers = RightAnswers()
    answers.reset(4)

    answers.add(batch(0, 1), outputs(0, 0))
    answers.add(batch(1, first=2), outputs(-1))
    said = (SimpleNamespace(sample_id="s9", correct=True),)
    answers.add(batch(), {"predictions": {}, "answers": said})

    assert answers.gather(4) == {
        "likelihood": {"s0": True, "s1": False, "s2": False},
        OPEN: {"s9": True},
    }


def test_answers_of_other_weights_are_none() -> None:
    answers = RightAnswers()
    answers.reset(0)
    answers.add(batch(0), outputs(0))

    assert answers.gather(0)
    assert answers.gather(2) == {}
    answers.reset(2)
    assert answers.gather(2) == {}
