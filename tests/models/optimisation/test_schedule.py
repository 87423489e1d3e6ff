from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch.optim import SGD
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.freeze import Everything, Lora
from lightning_mllm.models.optimisation.muon import MuonAdamW
from lightning_mllm.models.optimisation.schedule import (
    LearningRates,
    PartSchedule,
    PartSchedules,
    Schedule,
    scheduled_parameter_groups,
)
from tests.support.loaded import load_copy


def test_each_part_has_its_rate_and_vectors_do_not_decay(tiny_llava: str) -> None:
    backbone = load_copy(tiny_llava)
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
    backbone = load_copy(tiny_llava)
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


def _factor(step: int, total: int, ratio: float, decay: str) -> float:
    warmup = math.ceil(ratio * total)
    if step < warmup:
        return step / warmup
    if decay == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


@pytest.mark.parametrize("optimizer_class", [SGD, MuonAdamW])
def test_each_part_follows_its_own_formula_at_every_step(
    tiny_llava: str, optimizer_class: Any
) -> None:
    total, own = 20, {"projector": (0.0, "constant"), "llm": (0.03, "cosine")}
    backbone = load_copy(tiny_llava)
    Everything().apply(backbone)
    rates = LearningRates(projector=1.0, llm=2.0, vision=3.0)
    parts = PartSchedules(
        projector=PartSchedule(0.0, "constant"), vision=PartSchedule(warmup_ratio=0.25)
    )
    own["vision"] = (0.25, "cosine")  # the decay is the model's
    optimizer = optimizer_class(scheduled_parameter_groups(backbone, rates))
    scheduler = Schedule(rates, 0.03, "cosine", total, parts).scheduler(optimizer)

    for step in range(total):
        for group in optimizer.param_groups:
            ratio, decay = own[group["option"]]
            peak = getattr(rates, group["option"])
            assert group["lr"] == pytest.approx(peak * _factor(step, total, ratio, decay))
        optimizer.step()
        scheduler.step()
    assert {group["option"] for group in optimizer.param_groups} == set(own)


@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_without_schedules_of_parts_the_rates_are_those_of_transformers(decay: Any) -> None:
    total, ours, theirs = 40, *(SGD([torch.zeros(1, requires_grad=True)], 2e-5) for _ in range(2))
    schedule = Schedule(LearningRates(), 0.1, decay, total).scheduler(ours)
    reference: Any = (
        get_cosine_schedule_with_warmup(theirs, 4, total)
        if decay == "cosine"
        else get_constant_schedule_with_warmup(theirs, 4)
    )

    for _ in range(total):
        assert schedule.get_last_lr() == reference.get_last_lr()  # bit for bit
        for each in (ours, theirs, schedule, reference):
            each.step()


def test_a_warm_up_of_a_part_that_is_impossible_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.schedules\.vision\.warmup_ratio must lie"):
        PartSchedules(vision=PartSchedule(1.5))


@pytest.mark.parametrize("rate", [-1e-3, math.nan, math.inf])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match=r"model\.learning_rates\.llm"):
        LearningRates(llm=rate)


def test_a_training_may_become_longer_but_not_shorter() -> None:
    shorter, longer = (Schedule(LearningRates(), 0.1, "cosine", steps) for steps in (6, 9))

    longer.check_resumes(asdict(shorter))
    with pytest.raises(ConfigError) as refused:
        shorter.check_resumes(asdict(longer), "runs/a/checkpoints/last.ckpt", 2)
    assert str(refused.value).startswith(
        "runs/a was planned for 9 steps (3 epochs), and this asks for 6 steps (2 epochs)."
    )
    assert str(refused.value).endswith("lightning fit --resume runs/a")
    with pytest.raises(ConfigError, match=r"mine\.ckpt was planned for 9 steps, .* 6 steps\."):
        shorter.check_resumes(asdict(longer), "mine.ckpt")


def test_a_constant_rate_without_warm_up_may_have_any_length() -> None:
    shorter, longer = (Schedule(LearningRates(), 0.0, "constant", steps) for steps in (6, 9))

    longer.check_resumes(asdict(shorter))
    shorter.check_resumes(asdict(longer))


def test_a_longer_training_that_differs_otherwise_is_refused() -> None:
    changed = r"another schedule: model\.learning_rates\.llm was 1\.0 and is 2e-05\. Leave"
    with pytest.raises(ConfigError, match=changed):
        Schedule(LearningRates(), 0.1, "cosine", 9).check_resumes(
            asdict(Schedule(LearningRates(llm=1.0), 0.1, "cosine", 6))
        )


def test_a_checkpoint_from_before_schedules_of_parts_goes_on() -> None:
    earlier = asdict(Schedule(LearningRates(), 0.1, "cosine", 6))
    del earlier["parts"]

    Schedule(LearningRates(), 0.1, "cosine", 6).check_resumes(earlier)
    with pytest.raises(ConfigError, match=r"model\.schedules\.llm\.decay was None and is constant"):
        own = PartSchedules(llm=PartSchedule(decay="constant"))
        Schedule(LearningRates(), 0.1, "cosine", 6, own).check_resumes(earlier)


def test_the_length_matters_where_any_part_depends_on_it() -> None:
    own = PartSchedules(vision=PartSchedule(decay="cosine"))
    earlier = asdict(Schedule(LearningRates(), 0.0, "constant", 9, own))

    with pytest.raises(ConfigError, match="was planned for 9 steps"):
        Schedule(LearningRates(), 0.0, "constant", 6, own).check_resumes(earlier)


def test_a_single_step_may_be_taken_by_parts_without_warm_up() -> None:
    own = PartSchedules(projector=PartSchedule(warmup_ratio=0.0))
    schedule = Schedule(LearningRates(), 0.03, "cosine", 1, own)

    schedule.check_learns(["projector"])
    with pytest.raises(ConfigError, match="a single step"):
        schedule.check_learns(["projector", "llm"])


def test_schedules_of_parts_refuse_an_optimiser_that_makes_groups_of_its_own() -> None:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    parts = PartSchedules(projector=PartSchedule(decay="constant"))

    with pytest.raises(ConfigError, match="SGD makes parameter groups of its own"):
        Schedule(LearningRates(), 0.1, "cosine", 6, parts).scheduler(optimizer)
    assert Schedule(LearningRates(), 0.1, "cosine", 6).scheduler(optimizer).get_last_lr() == [0.0]
