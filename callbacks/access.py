"""What the callbacks ask of the module and the trainer, checked in one place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
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
