from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch
from torch.optim import SGD

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.freeze import Everything, Lora
from lightning_mllm.models.optimisation.schedule import (
    LearningRates,
    Schedule,
    scheduled_parameter_groups,
)


def test_each_part_has_its_rate_and_vectors_do_not_decay(tiny_llava: str) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    report = Everything().apply(backbone)
    names = {id(parameter): name for name, parameter in backbone.parameters()}

    groups = scheduled_parameter_groups(backbone, LearningRates(projector=1, llm=2, vision=3))

    grouped = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(report.trainable_names)
    for group in groups:
        for parameter in group["params"]:
            part = backbone.part_of(names[id(parameter)])
            assert group["lr"] == {"projector": 1, "llm": 2, "vision": 3}[part]
            assert ("weight_decay" in group) == (parameter.ndim == 1)


def test_adapters_have_a_rate_of_their_own(tiny_llava: str) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    Lora(rank=2, projector=True).apply(backbone)

    rates = {
        group["name"]: group["lr"]
        for group in scheduled_parameter_groups(backbone, LearningRates(lora=5, projector=7))
    }

    assert rates == {"llm lora": 5, "projector": 7, "projector (no decay)": 7}


def test_the_rate_rises_linearly_then_follows_half_a_cosine() -> None:
    total, ratio = 100, 0.03
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = Schedule(LearningRates(), ratio, "cosine", total).scheduler(optimizer)

    rates = []
    for _ in range(total):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()

    warmup = 3
    expected = [
        2 * step / warmup
        if step < warmup
        else 2 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        for step in range(total)
    ]
    assert rates == pytest.approx(expected)
    assert scheduler.get_last_lr()[0] == pytest.approx(0)


@pytest.mark.parametrize("rate", [-1e-3, math.nan, math.inf])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match=r"model\.learning_rates\.llm"):
        LearningRates(llm=rate)


def test_a_training_may_become_longer_but_not_shorter() -> None:
    shorter, longer = (Schedule(LearningRates(), 0.1, "cosine", steps) for steps in (6, 9))

    longer.check_resumes(asdict(shorter))
    with pytest.raises(ConfigError, match="was written under the schedule"):
        shorter.check_resumes(asdict(longer))


def test_a_constant_rate_without_warm_up_may_have_any_length() -> None:
    shorter, longer = (Schedule(LearningRates(), 0.0, "constant", steps) for steps in (6, 9))

    longer.check_resumes(asdict(shorter))
    shorter.check_resumes(asdict(longer))


def test_a_longer_training_that_differs_otherwise_is_refused() -> None:
    with pytest.raises(ConfigError, match="was written under the schedule"):
        Schedule(LearningRates(), 0.1, "cosine", 9).check_resumes(
            asdict(Schedule(LearningRates(llm=1.0), 0.1, "cosine", 6))
        )
