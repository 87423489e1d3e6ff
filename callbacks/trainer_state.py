"""What the callbacks ask of the module and the trainer: folders, classes, epochs, what runs now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.types import LabelSet, Sample


def mllm(pl_module: L.LightningModule) -> MLLMModule:
    """Return the module as what it is.

    Raises:
        ConfigError: It is some other LightningModule.
    """
    if not isinstance(pl_module, MLLMModule):
        raise ConfigError(
            f"This callback reads the results of an MLLMModule, but the Trainer runs a {type(pl_module).__name__}. "
            "Use MLLMModule or a subclass, or leave the callback out."
        )
    return pl_module


def run_dir(trainer: L.Trainer) -> Path:
    """Return the folder of the run."""
    return Path(trainer.default_root_dir)


def evaluation_dir(trainer: L.Trainer, module: MLLMModule) -> Path:
    """Return the folder of the evaluation under way, named after its stage and the optimiser steps so far."""
    return run_dir(trainer) / "evaluation" / f"{module.stage_name}-step{module.trained_steps}"


def label_set(trainer: L.Trainer) -> LabelSet | None:
    """Return the classes of the data; None for free-form data."""
    labels: LabelSet | None = trainer.datamodule.label_set  # type: ignore[attr-defined]
    return labels


def class_names(trainer: L.Trainer, why: str = "features are extracted to be told apart by class") -> tuple[str, ...]:
    """Return the names of the classes.

    Args:
        trainer: Of the data.
        why: What they are needed for, for the message.

    Raises:
        ConfigError: The data has no labels.
    """
    labels = label_set(trainer)
    if labels is None:
        raise ConfigError(
            f"{type(trainer.datamodule).__name__} has no labels, but {why}. "  # type: ignore[attr-defined]
            "Use data whose samples have labels, or leave the callback out."
        )
    return labels.names


def picture(trainer: L.Trainer, sample: Sample, longer_side: int) -> Image.Image:
    """Return a small copy of a sample's first image, as the model sees it."""
    full: Image.Image = trainer.datamodule.picture(sample)  # type: ignore[attr-defined]
    small = full.copy()
    small.thumbnail((longer_side, longer_side))
    return small


def samples(trainer: L.Trainer) -> Sequence[Sample]:
    """Return the samples of the split that is being evaluated."""
    split = "test" if trainer.testing else "val"
    found: Sequence[Sample] = trainer.datamodule.samples[split]  # type: ignore[attr-defined]
    return found


def check_validation(trainer: L.Trainer, name: str) -> None:
    """Refuse a fit without validation to a callback that does its work there.

    Args:
        trainer: Whose fit is being set up.
        name: Of the callback, for the message.

    Raises:
        ConfigError: The fit has no validation.
    """
    if not trainer.enable_validation:
        raise ConfigError(
            f"{name} does its work at the validations of a fit, and this one has none: trainer.limit_val_batches is "
            f"{trainer.limit_val_batches}. Set it to 1 or more and give the data a validation split, or leave "
            f"{name} out."
        )


def starts_untrained(trainer: L.Trainer, module: MLLMModule) -> bool:
    """Return whether the fit that starts is of an untrained model, and validates it."""
    return trainer.enable_validation and not module.trained_steps


def is_due(trainer: L.Trainer, every_n_epochs: int) -> bool:
    """Return whether `fit` is at a validation of each n-th epoch, or at the last one of all."""
    if not is_fitting(trainer):
        return False
    is_last = trainer.should_stop or trainer.global_step >= trainer.estimated_stepping_batches
    return is_last or (trainer.current_epoch + 1) % every_n_epochs == 0


def is_fitting(trainer: L.Trainer) -> bool:
    """Return whether `fit` is running, past the sanity check."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def epoch_of(trainer: L.Trainer, module: MLLMModule) -> int | None:
    """Return the epoch, from 0, that the weights at hand come from.

    It is -1 before training, and None where it is not known: they were loaded from a checkpoint of some step.
    """
    if not module.trained_steps:
        return -1
    if trainer.state.fn == TrainerFn.FITTING:
        return trainer.current_epoch
    return trainer.current_epoch - 1 if trainer.current_epoch and module.trained_steps == trainer.global_step else None
