"""What the callbacks ask of the module and the trainer, checked in one place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.probing.cache import FeatureCache
from lightning_mllm.probing.extraction import extract
from lightning_mllm.probing.feature_set import FeatureSet
from lightning_mllm.probing.points import Point
from lightning_mllm.types import LabelSet, MultimodalBatch, Sample

Split = Literal["train", "val", "test"]


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


def features(
    trainer: L.Trainer,
    pl_module: L.LightningModule,
    split: Split,
    points: Sequence[Point],
    cache: FeatureCache | None = None,
) -> dict[str, FeatureSet]:
    """Extract the features of a split with the weights at hand; each process gets those of all samples.

    A trial with `fast_dev_run` reads one batch.

    Returns:
        Point's name -> features.

    Raises:
        ConfigError: The data has no labels, or a point does not exist in this model.
    """
    module, labels = mllm(pl_module), label_set(trainer)
    if labels is None:
        raise ConfigError(
            f"{type(trainer.datamodule).__name__} has no labels, but features are extracted to be told apart by class. "  # type: ignore[attr-defined]
            "Use data whose samples have labels, or leave the callback out."
        )
    loader: Iterable[MultimodalBatch] = trainer.datamodule.plain_dataloader(split)  # type: ignore[attr-defined]
    batches = (batch.to(module.device) for batch in islice(loader, 1 if trainer.fast_dev_run else None))  # type: ignore[attr-defined]
    with module.adapted.autocast(module.device.type):
        return extract(module.backbone, batches, points, labels.names, cache=cache)


def is_fitting(trainer: L.Trainer) -> bool:
    """Return whether `fit` is running, past the sanity check."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def epoch_of(trainer: L.Trainer, module: MLLMModule) -> int | None:
    """Return the epoch, from 0, that the weights at hand come from: -1 before training, None where it is not known."""
    if not module.trained_steps:
        return -1
    if trainer.state.fn == TrainerFn.FITTING:
        return trainer.current_epoch
    return trainer.current_epoch - 1 if trainer.current_epoch else None
