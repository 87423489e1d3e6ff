"""Refuses, before it starts, a fit in which a trained part could not learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_mllm.errors import ConfigError, did_you_mean
from lightning_mllm.models.adapted import AdaptedModel
from lightning_mllm.models.backbone import Part
from lightning_mllm.models.freeze_report import FreezeReport
from lightning_mllm.models.optimisation.schedule import LearningRates, Schedule

_SPEED = "throughput/"  # what the callback Throughput logs
_MOST_NAMES = 12  # in a message
# only pictures go through these parts
_BEFORE_LLM = frozenset({Part.VISION, Part.VISION_LORA, Part.PROJECTOR})


def check_fit(report: FreezeReport, trainer: Any) -> None:
    """Refuse a fit that would not train what it should.

    Args:
        report: What the policy made trainable.
        trainer: Lightning's trainer, whose DataModule is set up.

    Raises:
        ConfigError: No step would be taken, or tower or projector are trained on data without
            pictures.
    """
    _check_length(trainer)
    _check_pictures(report, trainer.datamodule)


def check_fit_trainable(adapted: AdaptedModel, rates: LearningRates) -> None:
    """Refuse to fit a model that can't be fitted.

    Args:
        adapted: The model under its policy.
        rates: Learning rate of each part.

    Raises:
        ConfigError: The policy leaves nothing trainable, a trained part has a rate of 0, the dtype
            is float16, or weights in bfloat16 would part from each other.
    """
    report = adapted.report
    if not report.trainable_names:
        raise ConfigError(
            f"model.policy {report.policy} leaves nothing trainable, so there is nothing to fit. "
            "Use `lightning test` for zero-shot evaluation, or choose e.g. --model.policy "
            "ProjectorOnly."
        )
    for part in Part:
        if part in report.trainable_parts and not rates.of(part):
            raise ConfigError(
                f"model.policy {report.policy} trains the part {part.value!r}, but "
                f"model.learning_rates.{rates.option_of(part)} is 0, so it would never move. Give "
                "it a rate, or choose a policy that leaves it frozen."
            )
    _check_rounded_alike(adapted)
    if adapted.dtype == torch.float16:
        raise ConfigError("model.dtype float16 overflows in training. Use bfloat16 or float32.")


def _check_rounded_alike(adapted: AdaptedModel) -> None:
    """Refuse weights in bfloat16 that each process has whole, beside shards.

    What rounding draws for a shard depends on its size, and so does then what is drawn for them.
    """
    loose = [] if adapted.shards is None else adapted.shards.loose
    whole = any(each.dtype == torch.bfloat16 for each in loose)
    if whole and len(loose) < len(adapted.report.trainable_names):
        raise ConfigError(
            "Under trainer.strategy fsdp2 each process has all adapters, beside its shard of what "
            "else is trained: rounded by chance, they would not stay the same on all. Leave "
            "model.trained_dtype out, or train the adapters alone."
        )


def check_fit_learns(trainer: Any, schedule: Schedule, groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a training whose only step has a rate of 0; one for a trial need not learn.

    Args:
        trainer: Lightning's trainer, whose DataModule is set up.
        schedule: The schedule of the training.
        groups: Parameter groups from `scheduled_parameter_groups`.

    Raises:
        ConfigError: It is one.
    """
    if trainer.fast_dev_run:
        return
    data = trainer.datamodule
    samples = len(data.samples["train"])
    length = f"{samples} training samples in batches of {data.batch_size} are"
    if trainer.max_steps == 1 or samples > data.batch_size:
        length = "The training has"
    schedule.check_learns((group["option"] for group in groups), length)


def check_fit_monitors(trainer: Any, module: Any, scores: Sequence[str]) -> None:
    """Refuse callbacks that watch a metric which the fit does not log.

    Nothing is refused where a module or a callback of the user's own may log it.

    Args:
        trainer: Lightning's trainer.
        module: The module that is fitted.
        scores: Names of the scores of an evaluation, without their stage.

    Raises:
        ConfigError: There is such a callback.
    """
    if any(not _is_known(each) for each in (module, *trainer.callbacks)):
        return
    logged = ["train/loss"]
    if trainer.limit_val_batches:
        logged += [f"val/{name}" for name in ("loss", *scores)]
    for callback in trainer.callbacks:
        watched: Any = getattr(callback, "monitor", None)
        lenient = not getattr(callback, "strict", True)  # EarlyStopping that does without it
        best: Any = getattr(getattr(callback, "best", None), "name", None)  # of our Checkpointing
        choices: list[tuple[str, Any, list[str]]] = [
            ("monitor", None if lenient else watched, logged),
            ("best", best, logged[1:]),  # of a validation
        ]
        for option, name, known in choices:
            if name in (None, "epoch", "step", *known) or name.startswith(_SPEED):
                continue
            more = f" and {len(known) - _MOST_NAMES} more" if len(known) > _MOST_NAMES else ""
            raise ConfigError(
                f"{type(callback).__name__} watches {name!r}, which this fit does not log. Set its "
                f"option {option} to one of: {', '.join(known[:_MOST_NAMES])}{more}."
                f"{did_you_mean(name, known)}"
            )


def _is_known(thing: object) -> bool:
    """Return whether a class is of this package or of Lightning's."""
    return type(thing).__module__.partition(".")[0] in ("lightning", "lightning_mllm")


def _check_length(trainer: Any) -> None:
    for limit in ("max_epochs", "max_steps", "limit_train_batches"):
        if getattr(trainer, limit) == 0:
            raise ConfigError(
                f"trainer.{limit} is 0, so nothing would be trained. Set it to 1 or more, or use "
                "`lightning validate` or `lightning test`."
            )


def _check_pictures(report: FreezeReport, data: Any) -> None:
    parts = sorted(part.value for part in report.trainable_parts & _BEFORE_LLM)
    if parts and not data.trains_on_pictures:
        raise ConfigError(
            f"No training sample of {type(data).__name__} has a picture, so no gradient reaches "
            f"the {' and '.join(parts)} that model.policy {report.policy} trains. Give the samples "
            "their pictures, or "
            "choose e.g. --model.policy LLMOnly."
        )
