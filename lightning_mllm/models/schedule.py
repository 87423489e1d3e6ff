"""Parameter groups with their own learning rates, and the linear warm-up with cosine decay."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone, Part

Decay = Literal["cosine", "constant"]


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

    Returns:
        Groups with `name`, `params`, `lr` and, where there must be none, `weight_decay`; empty groups are left out.
    """
    norms = {
        f"{module_name}.{name}"
        for module_name, module in backbone.model.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False)
    }
    groups: dict[tuple[Part, bool], list[nn.Parameter]] = {}
    for name, parameter in backbone.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name not in norms
            groups.setdefault((backbone.part_of(name), decays), []).append(parameter)
    return [
        {
            "name": part.value if decays else f"{part.value} (no decay)",
            "params": parameters,
            "lr": rates.of(part),
            **({} if decays else {"weight_decay": 0.0}),
        }
        for (part, decays), parameters in sorted(groups.items())
    ]


def warmup_then_decay(optimizer: Optimizer, total_steps: int, warmup_ratio: float, decay: Decay) -> LambdaLR:
    """Rise linearly from 0 over ceil(warmup_ratio * total_steps) steps, then follow half a cosine to 0, or stay.

    The schedules are those of transformers, so that a recipe of its Trainer carries over.
    """
    warmup = math.ceil(warmup_ratio * total_steps)
    schedule: LambdaLR
    if decay == "constant":
        schedule = get_constant_schedule_with_warmup(optimizer, num_warmup_steps=warmup)
    else:
        schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)
    return schedule
