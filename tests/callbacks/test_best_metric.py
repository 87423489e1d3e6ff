"""Which of a fit's checkpoints is the best."""

from __future__ import annotations

import math

import pytest

from lightning_mllm.callbacks.best_metric import BestMetric
from lightning_mllm.errors import ConfigError


@pytest.mark.parametrize(
    ("option", "best"),
    [
        ("val/loss", 0),
        ("val/generation/invalid_rate", 0),
        ("val/likelihood/accuracy", 2),
        ("val/likelihood/macro_f1", 2),
        ("val/mine:min", 0),
        ("val/loss:max", 2),
    ],
)
def test_the_best_value_is_the_lowest_or_the_highest_and_the_first_of_equal_ones(
    option: str, best: int
) -> None:
    metric = BestMetric.of(option)

    for step, value in enumerate([0.5, 0.7, 0.9, 0.9, math.nan, 0.5]):
        metric.take(value, step)

    assert metric.step == best


def test_a_name_that_does_not_say_which_is_better_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Write val/mine:min or val/mine:max"):
        BestMetric.of("val/mine")


def test_a_metric_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"There are: val/accuracy, val/loss\."):
        BestMetric.of("val/los:min").value_in({"val/loss": 1, "val/accuracy": 0, "epoch": 1})
