"""Parameter groups with their own learning rates, warm-up and decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.optimisation.prolonging import explain_other_schedule

Decay = Literal["cosine", "constant"]

_MATRIX = 2  # dimensions
_EMBEDDINGS = " (embeddings)"  # suffixes of the names of groups
_NO_DECAY = " (no decay)"


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rate of each part; only those of trained parts matter.

    The defaults are LLaVA-1.5's (Liu et al., CVPR 2024): 1e-3 for a projection, 2e-5 for the LLM,
    2e-4 for adapters. Towers are commonly tuned at a tenth of the LLM's rate.

    Attributes:
        projector: Peak learning rate of the projector.
        llm: Peak learning rate of the LLM's own weights.
        lora: Peak learning rate of adapters, in the LLM or in the vision tower.
        vision: Peak learning rate of the vision tower's own weights.

    Raises:
        ConfigError: A rate is negative or not finite.
    """

    projector: float = 1e-3
    llm: float = 2e-5
    lora: float = 2e-4
    vision: float = 2e-6

    def of(self, part: Part) -> float:
        """Return the rate of a part."""
        rate: float = getattr(self, self.option_of(part))
        return rate

    @staticmethod
    def option_of(part: Part) -> str:
        """Return the name of the option with the rate of a part; all adapters share one."""
        return "lora" if part in (Part.VISION_LORA, Part.LLM_LORA) else part.value

    def __post_init__(self) -> None:
        for part, rate in asdict(self).items():
            if not (rate >= 0 and math.isfinite(rate)):
                raise ConfigError(
                    f"model.learning_rates.{part} must be a number of at least 0, not {rate}."
                )


def scheduled_parameter_groups(backbone: Backbone, rates: LearningRates) -> list[dict[str, Any]]:
    """Group the trained parameters by part and by how they are optimised.

    Parameters of norms and all vectors (biases, `image_newline`) get no weight decay. Embeddings,
    the head and convolutions are groups of their own: optimisers for matrices leave them to others.

    Returns:
        Groups with `name`, `params`, `lr`, `option` (of `LearningRates` and `PartSchedules`),
        `matrices` (whether the parameters are weight matrices) and, where there must be none,
        `weight_decay`; empty groups are left out.
    """
    norms, lookups = _norm_parameters(backbone), _lookup_tables(backbone)
    grouped: dict[tuple[Part, str], list[nn.Parameter]] = {}
    for name, parameter in backbone.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim <= 1 or name in norms:
            suffix = _NO_DECAY
        elif parameter.ndim != _MATRIX or id(parameter) in lookups:
            suffix = _EMBEDDINGS
        else:
            suffix = ""
        grouped.setdefault((backbone.part_of(name), suffix), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for (part, suffix), parameters in sorted(grouped.items()):
        group: dict[str, Any] = {
            "name": part.value + suffix,
            "params": parameters,
            "lr": rates.of(part),
            "option": rates.option_of(part),
            "matrices": not suffix,
        }
        if suffix == _NO_DECAY:
            group["weight_decay"] = 0.0
        groups.append(group)
    return groups


def _norm_parameters(backbone: Backbone) -> set[str]:
    """Return the names of the parameters of normalisation layers."""
    names: set[str] = set()
    for module_name, module in backbone.model.named_modules():
        if "norm" in type(module).__name__.lower():
            own = module.named_parameters(recurse=False)
            names.update(f"{module_name}.{name}" for name, _ in own)
    return names


def _lookup_tables(backbone: Backbone) -> set[int]:
    """Return the ids of the weights of embeddings and head."""
    tables = {id(backbone.lm_head.weight)}
    for module in backbone.model.modules():
        if isinstance(module, nn.Embedding):
            tables.add(id(module.weight))
    return tables


@dataclass(frozen=True)
class PartSchedule:
    """How the rate of one part goes, where it differs from that of the other parts.

    Attributes:
        warmup_ratio: Fraction of the training steps over which the part's rate rises from 0; by
            default `model.warmup_ratio`.
        decay: What the part's rate does after its warm-up; by default `model.decay`.
    """

    warmup_ratio: float | None = None
    decay: Decay | None = None


@dataclass(frozen=True)
class PartSchedules:
    """Schedules of single parts; a part whose schedule says nothing goes as the model does.

    Attributes:
        projector: Schedule of the projector.
        llm: Schedule of the LLM's own weights.
        lora: Schedule of adapters, in the LLM or in the vision tower.
        vision: Schedule of the vision tower's own weights.

    Raises:
        ConfigError: A warm-up is not between 0 and 1.
    """

    projector: PartSchedule = PartSchedule()
    llm: PartSchedule = PartSchedule()
    lora: PartSchedule = PartSchedule()
    vision: PartSchedule = PartSchedule()

    def __post_init__(self) -> None:
        for part, own in asdict(self).items():
            ratio = own["warmup_ratio"]
            if ratio is not None and not 0 <= ratio <= 1:
                raise ConfigError(
                    f"model.schedules.{part}.warmup_ratio must lie between 0 and 1, not {ratio}."
                )


@dataclass(frozen=True)
class Schedule:
    """Linear rise from 0 in ceil(warmup_ratio * steps) steps, then half a cosine to 0, or constant.

    The schedules are those of transformers, so that a recipe of its Trainer carries over.

    Attributes:
        learning_rates: Peak learning rate of each part.
        warmup_ratio: Fraction of the steps over which the rates rise.
        decay: What the rates do after the warm-up.
        steps: Number of optimiser steps of the whole training.
        parts: Schedules of single parts.

    Raises:
        ConfigError: The number of steps is infinite.
    """

    learning_rates: LearningRates
    warmup_ratio: float
    decay: Decay
    steps: int | float
    parts: PartSchedules = PartSchedules()

    def __post_init__(self) -> None:
        if self.steps == math.inf:
            raise ConfigError(
                "The learning-rate schedule needs an end: set trainer.max_epochs or "
                "trainer.max_steps."
            )

    def check_resumes(
        self,
        earlier: Mapping[str, Any] | None,
        checkpoint: str | Path | None = None,
        epochs: int | None = None,
    ) -> None:
        """Refuse to go on from a checkpoint that was written under another schedule.

        A longer one is planned anew from the step reached (`follow_longer_schedule`).

        Args:
            earlier: `asdict` of the schedule in the checkpoint; None if the run does not resume.
            checkpoint: The checkpoint's file, by which the run that goes on is named.
            epochs: Number of epochs that the steps make, if that is what was asked for.

        Raises:
            ConfigError: The two schedules differ, and not only in that ours is longer.
        """
        ours = asdict(self)
        if earlier is not None:
            # in checkpoints of versions in which all parts had one schedule, it is not there
            earlier = {"parts": asdict(PartSchedules()), **earlier}
            if self._is_endless or earlier["steps"] < self.steps:
                earlier["steps"] = self.steps
        if earlier is not None and earlier != ours:
            raise ConfigError(explain_other_schedule(earlier, ours, checkpoint, epochs))

    def check_learns(self, options: Iterable[str], length: str = "The training has") -> None:
        """Refuse a training whose only step is the first of a warm-up, which has a rate of 0.

        Args:
            options: The `option` of each parameter group.
            length: What has a single step, for the message.

        Raises:
            ConfigError: There is a single step, with warm-up.
        """
        ratio = max((self._of(option)[0] for option in options), default=0.0)
        if self.steps == 1 and ratio:
            raise ConfigError(
                f"{length} a single step, and a warm-up ratio of {ratio} gives it a rate of 0, so "
                "a trained part would learn nothing. Train for more steps in smaller batches, e.g. "
                "`--data.init_args.batch_size 8 --trainer.max_epochs 3`, or set "
                "model.warmup_ratio to 0, and those in model.schedules too."
            )

    def scheduler(self, optimizer: Optimizer) -> LambdaLR:
        """Return the schedule for an optimiser whose rates are the peaks.

        Args:
            optimizer: Optimiser of groups from `scheduled_parameter_groups`; a group without
                `option`, of an optimiser that makes groups of its own, goes as the model does.

        Raises:
            ConfigError: A group has no `option`, and parts have schedules of their own.
        """
        groups = optimizer.param_groups
        if self.parts != PartSchedules() and any("option" not in group for group in groups):
            raise ConfigError(
                f"{type(optimizer).__name__} makes parameter groups of its own, without the key "
                "`option`, so model.schedules can't be applied. Leave model.schedules out, or let "
                "the optimiser keep the keys of the groups that it gets."
            )
        return LambdaLR(optimizer, [self._multiplier(group.get("option")) for group in groups])

    def _multiplier(self, option: str | None) -> Callable[[int], float]:
        """Return what makes of a step the factor on the peak: that of transformers."""
        ratio, decay = self._of(option)
        warmup = math.ceil(ratio * self.steps)
        unused = SGD([torch.zeros(1, requires_grad=True)])  # transformers asks for an optimiser
        made: LambdaLR
        if decay == "constant":
            made = get_constant_schedule_with_warmup(unused, num_warmup_steps=warmup)
        else:
            made = get_cosine_schedule_with_warmup(
                unused, num_warmup_steps=warmup, num_training_steps=int(self.steps)
            )
        multiplier: Callable[[int], float] = made.lr_lambdas[0]
        return multiplier

    def _of(self, option: str | None) -> tuple[float, Decay]:
        """Return warm-up and decay of a part, named as in `PartSchedules`; None for the model's."""
        own = PartSchedule() if option is None else getattr(self.parts, option)
        ratio: float = self.warmup_ratio if own.warmup_ratio is None else own.warmup_ratio
        return ratio, own.decay or self.decay

    @property
    def _is_endless(self) -> bool:
        """Whether no part's rate depends on the number of steps."""
        return all(self._of(option) == (0, "constant") for option in asdict(self.parts))
