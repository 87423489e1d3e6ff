"""What callbacks ask about the run: the module and the data, folders, epochs, whether to write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.types import LabelSet, Sample


def trainer_mllm(pl_module: L.LightningModule) -> MLLMModule:
    """Return the module, checked to be an MLLMModule.

    Raises:
        ConfigError: It is another LightningModule.
    """
    if not isinstance(pl_module, MLLMModule):
        raise ConfigError(
            "This callback reads the results of an MLLMModule, but the Trainer runs a "
            f"{type(pl_module).__name__}. Use MLLMModule or a subclass, or leave the callback out."
        )
    return pl_module


def trainer_datamodule(trainer: L.Trainer) -> MLLMDataModule:
    """Return the Trainer's data."""
    data: MLLMDataModule = trainer.datamodule  # type: ignore[attr-defined]
    return data


def trainer_run_dir(trainer: L.Trainer) -> Path:
    """Return the folder of the run."""
    return Path(trainer.default_root_dir)


def trainer_evaluation_dir(trainer: L.Trainer, module: MLLMModule) -> Path:
    """Return the folder of the current evaluation, named after its stage and the steps taken."""
    return (
        trainer_run_dir(trainer) / "evaluation" / f"{module.stage_name}-step{module.trained_steps}"
    )


def trainer_figure(trainer: L.Trainer, folder: Path, name: str) -> Path:
    """Return the file of a figure, of the kind that the run's figures have."""
    return folder / f"{name}.{getattr(trainer, 'figures', 'png')}"


def trainer_writes_results(trainer: L.Trainer) -> bool:
    """Return whether this process writes files: only the first one, and never in a trial run.

    A trial run is one with `fast_dev_run`.
    """
    return trainer.is_global_zero and not trainer_is_trial(trainer)


def trainer_has_folder(trainer: L.Trainer) -> bool:
    """Return whether files have a folder to go to, which a trial run and `logger=False` have not.

    Without a logger Lightning's folder is the current one, unless it is given another.
    """
    if trainer_is_trial(trainer):
        return False
    return bool(trainer.loggers) or trainer_run_dir(trainer).resolve() != Path.cwd()


def trainer_is_trial(trainer: L.Trainer) -> bool:
    """Return whether this is a trial run with `fast_dev_run`, whose results mean nothing."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def trainer_answers(trainer: L.Trainer) -> bool:
    """Return whether the predict loop answers samples: `extract` and `analyze` use it, too."""
    return bool(getattr(trainer, "answers", True))  # Lightning's own Trainer has none


def trainer_label_set(trainer: L.Trainer) -> LabelSet | None:
    """Return the classes of the data; None for free-form data."""
    return trainer_datamodule(trainer).label_set


def trainer_class_names(
    trainer: L.Trainer, why: str = "features are extracted to be classified"
) -> tuple[str, ...]:
    """Return the names of the classes.

    Args:
        trainer: The Trainer, with its data.
        why: Why the names are needed, for the error message.

    Raises:
        ConfigError: The data has no labels.
    """
    labels = trainer_label_set(trainer)
    if labels is None:
        data = type(trainer_datamodule(trainer)).__name__
        raise ConfigError(
            f"{data} has no labels, but {why}. Use data whose "
            "samples have labels, or leave the callback out."
        )
    return labels.names


def trainer_evaluated_split(trainer: L.Trainer) -> Sequence[Sample]:
    """Return the samples of the split that is being evaluated."""
    return trainer_datamodule(trainer).samples["test" if trainer.testing else "val"]


def check_trainer_validates(trainer: L.Trainer, name: str) -> None:
    """Refuse a fit without validation if a callback works only at validations.

    Args:
        trainer: The Trainer whose fit is being set up.
        name: Name of the callback, for the error message.

    Raises:
        ConfigError: The fit has no validation.
    """
    if not trainer.enable_validation:
        raise ConfigError(
            f"{name} runs at the validations of a fit, but this fit has none: "
            f"trainer.limit_val_batches is {trainer.limit_val_batches}. Set it to 1 or more and "
            f"give the data a validation split, or leave {name} out."
        )


def trainer_starts_untrained(trainer: L.Trainer, module: MLLMModule) -> bool:
    """Return whether the fit that starts trains an untrained model, and has validations."""
    return trainer.enable_validation and not module.trained_steps


def trainer_is_due(trainer: L.Trainer, every_n_epochs: int) -> bool:
    """Return whether `fit` is at a validation of every n-th epoch, or at its last validation."""
    if not trainer_is_fitting(trainer):
        return False
    is_last = trainer.should_stop or trainer.global_step >= trainer.estimated_stepping_batches
    return is_last or (trainer.current_epoch + 1) % every_n_epochs == 0


def trainer_is_fitting(trainer: L.Trainer) -> bool:
    """Return whether `fit` is running and the sanity check is over."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def trainer_epoch(trainer: L.Trainer, module: MLLMModule) -> int | None:
    """Return the epoch, counted from 0, in which the current weights were trained.

    It is -1 before training. It is None where the epoch is unknown: the weights were loaded from a
    training checkpoint, which says the step only.
    """
    if not module.trained_steps:
        return -1
    if trainer.state.fn == TrainerFn.FITTING:
        return trainer.current_epoch
    if trainer.current_epoch and module.trained_steps == trainer.global_step:
        return trainer.current_epoch - 1
    return None


def trainer_total_steps(trainer: L.Trainer) -> int | None:
    """Return the steps of the whole fit; None if they are not known."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if math.isfinite(steps) and steps >= 0 else None


def trainer_place(trainer: L.Trainer) -> str:
    """Say where the fit is, for people: `epoch 3/8`, counted from 1.

    The number of epochs is that of the steps, also where `max_steps` or a part of the data limits
    them. Where the data has no length, it is `step 500/2000`, and without a known end `step 500`.
    """
    steps, per_epoch = trainer_total_steps(trainer), trainer.num_training_batches
    if steps is not None and math.isfinite(per_epoch) and per_epoch:
        epochs = max(1, math.ceil(steps / per_epoch))
        return f"epoch {min(trainer.current_epoch + 1, epochs)}/{epochs}"
    return trainer_step_place(trainer)


def trainer_step_place(trainer: L.Trainer) -> str:
    """Say after which step the fit is, for people: `step 500/2000`, or `step 500`."""
    steps = trainer_total_steps(trainer)
    return f"step {trainer.global_step}" + ("" if steps is None else f"/{steps}")
