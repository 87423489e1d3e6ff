"""Refuses a fit in which something that is trained can't learn, as far as that is known before it starts."""

from __future__ import annotations

from typing import Any

import torch

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.adapted import AdaptedModel
from lightning_mllm.models.backbone import Part
from lightning_mllm.models.freeze import FreezeReport
from lightning_mllm.models.optimisation.schedule import LearningRates

_BEFORE_LLM = frozenset({Part.VISION, Part.VISION_LORA, Part.PROJECTOR})  # only pictures go through them


def check_fit(adapted: AdaptedModel, rates: LearningRates, trainer: Any) -> None:
    """Refuse a fit that can't do what it is for.

    Args:
        adapted: The model under its policy.
        rates: At which its parts are trained.
        trainer: Lightning's, whose DataModule is set up.

    Raises:
        ConfigError: The model can't be fitted, nothing is trained, or parts that only pictures go through get none.
    """
    check_trainable(adapted, rates)
    _check_length(trainer)
    _check_pictures(adapted.report, trainer.datamodule)


def check_trainable(adapted: AdaptedModel, rates: LearningRates) -> None:
    """Refuse to fit a model that can't be fitted.

    Args:
        adapted: The model under its policy.
        rates: At which its parts are trained.

    Raises:
        ConfigError: The policy leaves nothing trainable, a trained part has a rate of 0, or the dtype is float16.
    """
    report = adapted.report
    if not report.trainable_names:
        raise ConfigError(
            f"model.policy {report.policy} leaves nothing trainable, so there is nothing to fit. "
            "Use `lightning test` for zero-shot evaluation, or choose e.g. --model.policy ProjectorOnly."
        )
    if still := [part for part in Part if part in report.trainable_parts and not rates.of(part)]:
        option = "lora" if still[0] in (Part.VISION_LORA, Part.LLM_LORA) else still[0].value
        raise ConfigError(
            f"model.policy {report.policy} trains the part {still[0].value!r}, but model.learning_rates.{option} is 0, "
            "so it would never move. Give it a rate, or choose a policy that leaves it frozen."
        )
    if adapted.dtype == torch.float16:
        raise ConfigError("model.dtype float16 overflows in training. Use bfloat16 or float32.")


def _check_length(trainer: Any) -> None:
    for limit in ("max_epochs", "max_steps", "limit_train_batches"):
        if getattr(trainer, limit) == 0:
            raise ConfigError(
                f"trainer.{limit} is 0, so nothing would be trained. Set it to 1 or more, or use `lightning validate` "
                "or `lightning test`."
            )


def _check_pictures(report: FreezeReport, data: Any) -> None:
    parts = sorted(part.value for part in report.trainable_parts & _BEFORE_LLM)
    if parts and not data.trains_on_pictures:
        raise ConfigError(
            f"No training sample of {type(data).__name__} has a picture, so no gradient reaches the "
            f"{' and '.join(parts)} that model.policy {report.policy} trains. Give the samples their pictures, or "
            "choose e.g. --model.policy LLMOnly."
        )
