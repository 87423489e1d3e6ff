"""What becomes of the learning rates when a training goes on for longer than it was planned."""

from __future__ import annotations

import logging
from typing import Any, Literal

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from lightning_mllm.models.optimisation.prolonging import follow_longer_schedule
from lightning_mllm.models.optimisation.schedule import LearningRates, Schedule


def rates(optimizer: SGD, scheduler: LambdaLR, steps: int) -> list[float]:
    """The rates of the next steps."""
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


def plan(steps: int, decay: Literal["cosine", "constant"]) -> tuple[SGD, LambdaLR]:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    return optimizer, Schedule(LearningRates(), 0.0, decay, steps).scheduler(optimizer)


@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_from_the_step_reached_on_the_rates_are_those_of_the_longer_training(
    decay: Any, caplog: pytest.LogCaptureFixture
) -> None:
    short, long, resumed = plan(6, decay), plan(15, decay), plan(15, decay)
    rates(*short, 6)
    resumed[0].load_state_dict(short[0].state_dict())
    resumed[1].load_state_dict(short[1].state_dict())

    with caplog.at_level(logging.WARNING):
        follow_longer_schedule(resumed[1], 6, 15)

    assert rates(*resumed, 9) == rates(*long, 15)[6:]
    assert ("prolonged from 6 to 15 steps" in caplog.text) == (decay == "cosine")
