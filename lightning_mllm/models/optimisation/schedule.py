"""Parameter groups with their own learning rates, and the linear warm-up with cosine decay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone, Part

Decay = Literal["cosine", "constant"]

_MATRIX = 2  # dimensions


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rate per part; only those of trained parts matter.

    The defaults are LLaVA-1.5's: 1e-3 for a projection, 2e-5 for the LLM, 2e-4 for adapters; towers are commonly
    tuned at a tenth of the LLM's rate.
    """

    projector: float = 1e-3
    llm: float = 2e-5
    lora: float = 2e-4
    vision: float = 2e-6

    def of(self, part: Part) -> float:
        """Return the rate of a part; adapters have one rate wherever they are."""
        rate: float = getattr(self, "lora" if part in (Part.VISION_LORA, Part.LLM_LORA) else part.value)
        return rate

    def __post_init__(self) -> None:
        for part, rate in asdict(self).items():
            if not (rate >= 0 and math.isfinite(rate)):
                raise ConfigError(f"model.learning_rates.{part} must be a number of at least 0, not {rate}.")


def parameter_groups(backbone: Backbone, rates: LearningRates) -> list[dict[str, Any]]:
    """Group the trained parameters by part, those of norms and all vectors (biases, `image_newline`) without decay.

    Embeddings, the head and convolutions are groups of their own: optimisers for matrices leave them to others.

    Returns:
        Groups with `name`, `params`, `lr`, `matrices` (whether its parameters are weight matrices) and, where there
        must be none, `weight_decay`; empty groups are left out.
    """
    norms = {
        f"{module_name}.{name}"
        for module_name, module in backbone.model.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False)
    }
    lookups = {
        id(module.weight)
        for module in (*backbone.model.modules(), backbone.lm_head)
        if isinstance(module, nn.Embedding) or module is backbone.lm_head
    }
    groups: dict[tuple[Part, str], list[nn.Parameter]] = {}
    for name, parameter in backbone.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name not in norms
            matrix = parameter.ndim == _MATRIX and id(parameter) not in lookups
            kind = "" if decays and matrix else " (embeddings)" if decays else " (no decay)"
            groups.setdefault((backbone.part_of(name), kind), []).append(parameter)
    return [
        {
            "name": part.value + kind,
            "params": parameters,
            "lr": rates.of(part),
            "matrices": not kind,
            **({"weight_decay": 0.0} if kind == " (no decay)" else {}),
        }
        for (part, kind), parameters in sorted(groups.items())
    ]


@dataclass(frozen=True)
class Schedule:
    """Linear rise from 0 over ceil(warmup_ratio * steps) steps, then half a cosine to 0, or the peak for good.

    The schedules are those of transformers, so that a recipe of its Trainer carries over.

    Attributes:
        learning_rates: Peak rates.
        warmup_ratio: Share of the steps over which the rates rise.
        decay: What they do then.
        steps: Optimiser steps of the whole training.
    """

    learning_rates: LearningRates
    warmup_ratio: float
    decay: Decay
    steps: int | float

    def __post_init__(self) -> None:
        if self.steps == math.inf:
            raise ConfigError("The learning-rate schedule needs an end: set trainer.max_epochs or trainer.max_steps.")

    def check_resumes(self, earlier: Mapping[str, Any] | None) -> None:
        """Refuse to go on from a checkpoint that was written under another schedule.

        Args:
            earlier: `asdict` of the schedule in the checkpoint; None if the run does not resume.

        Raises:
            ConfigError: It differs.
        """
        ours = asdict(self)
        if earlier is not None and self.decay == "constant" and self.warmup_ratio == 0:
            earlier = {**earlier, "steps": self.steps}  # the length is no matter
        if earlier not in (None, ours):
            raise ConfigError(
                f"The checkpoint was written under the schedule {earlier}, but this run has {ours}. A resumed "
                "run goes on as it began; to change it, `lightning export` the model and fit from the exported folder."
            )

    def check_learns(self) -> None:
        """Refuse a training whose only step is the first of a warm-up, which has a rate of 0.

        Raises:
            ConfigError: It is.
        """
        if self.steps == 1 and self._warmup:
            raise ConfigError(
                f"The training has a single step, and model.warmup_ratio {self.warmup_ratio} gives it a rate of 0, so "
                "nothing would be learnt. Train for more steps, or set model.warmup_ratio to 0."
            )

    @property
    def _warmup(self) -> int:
        """Steps of the warm-up."""
        return math.ceil(self.warmup_ratio * self.steps)

    def scheduler(self, optimizer: Optimizer) -> LambdaLR:
        """Return the schedule for an optimiser whose rates are the peaks."""
        warmup = self._warmup
        scheduler: LambdaLR
        if self.decay == "constant":
            scheduler = get_constant_schedule_with_warmup(optimizer, num_warmup_steps=warmup)
        else:
            scheduler = get_cosine_schedule_with_warmup(
                optimizer, num_warmup_steps=warmup, num_training_steps=int(self.steps)
            )
        return scheduler
