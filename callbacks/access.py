"""What the callbacks ask of the module and the trainer, checked in one place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import lightning as L
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from lightning_mllm.data.base import MLLMDataModule
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.probing.cache import FeatureCache
from lightning_mllm.probing.extraction import extract
from lightning_mllm.probing.feature_set import FeatureSet
from lightning_mllm.probing.points import Point
from lightning_mllm.probing.tapping import Tapper
from lightning_mllm.types import LabelSet, MultimodalBatch, Sample

Split = Literal["train", "val", "test"]
Row = TypeVar("Row")


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


def tapped_samples(trainer: L.Trainer, split: Split, data: MLLMDataModule | None = None) -> Sequence[Sample]:
    """Return the samples of a split that features are extracted from, in order.

    Of the validation and the test split they are those that the model itself is evaluated on, as `limit_val_batches`
    and `limit_test_batches` say, so that a probe's N is the model's. The training split is taken whole: a limit on its
    batches is one per epoch, with other samples in each, and the first samples may well be of one class. Only a trial
    with `fast_dev_run` takes as many batches of it as of the others. So it is with `data` that are not the Trainer's.
    """
    own: Any = trainer.datamodule if data is None else data  # type: ignore[attr-defined]
    limits: dict[Split, int | float] = {
        "train": trainer.limit_train_batches if trainer.fast_dev_run else 1.0,  # type: ignore[attr-defined]
        "val": trainer.limit_val_batches,
        "test": trainer.limit_test_batches,
    }
    return _within(own.samples[split], limits[split if data is None else "train"], own.eval_batch_size)


def predicted_samples(trainer: L.Trainer, split: Split) -> Sequence[Sample]:
    """Return the samples of a split that the predict loop goes through, as `limit_predict_batches` says."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return _within(data.samples[split], trainer.limit_predict_batches, data.eval_batch_size * trainer.world_size)


def _within(samples: Sequence[Sample], limit: int | float, batch_size: int) -> Sequence[Sample]:
    """Return the samples of the batches that one of the Trainer's limits lets through."""
    batches = math.ceil(len(samples) / batch_size)
    taken = min(limit, batches) if isinstance(limit, int) else int(limit * batches)  # as Lightning counts
    return samples[: taken * batch_size]


def tapped_batches(trainer: L.Trainer, split: Split, data: MLLMDataModule | None = None) -> Iterator[MultimodalBatch]:
    """Return the batches of `tapped_samples`; of several processes each has its share."""
    own: Any = trainer.datamodule if data is None else data  # type: ignore[attr-defined]
    loader: Iterable[MultimodalBatch] = own.plain_dataloader(split)  # sets the split up
    return islice(loader, math.ceil(len(tapped_samples(trainer, split, data)) / own.eval_batch_size))


def features(
    trainer: L.Trainer,
    pl_module: L.LightningModule,
    split: Split,
    points: Sequence[Point],
    cache: FeatureCache | None = None,
) -> dict[str, FeatureSet]:
    """Extract the features of a split's `tapped_samples` with the weights at hand; each process gets all of them.

    Returns:
        Point's name -> features.

    Raises:
        ConfigError: The data has no labels, or a point does not exist in this model.
    """
    module, names = mllm(pl_module), class_names(trainer)
    batches = tapped_batches(trainer, split)
    rank_zero_info("Extracting the features of %d %s samples.", len(tapped_samples(trainer, split)), split)
    with module.adapted.autocast(module.device.type):
        return extract(module.backbone, batches, points, names, cache=cache)


def pictures(trainer: L.Trainer, split: Split) -> Iterator[tuple[tuple[str, ...], list[Image.Image]]]:
    """Open the pictures of a split's `tapped_samples` for another model, in the batches that the model itself gets.

    Args:
        trainer: Its data have the pictures, and say how many are opened side by side (`num_workers`).
        split: The split.

    Yields:
        Sample ids and first pictures of a batch; of several processes each has its share.

    Raises:
        DataError: A picture can't be read, or a sample has none.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    samples = tapped_samples(trainer, split)
    shares = islice(data.plain_dataloader(split).batch_sampler, math.ceil(len(samples) / data.eval_batch_size))
    with ThreadPoolExecutor(max(1, data.num_workers)) as pool:  # Pillow lets go of the interpreter
        for share in shares:
            batch = [samples[index] for _, index in share]
            for sample in batch:
                if not sample.images:
                    raise DataError(f"Sample {sample.id!r} has no image to be classified. Give it one or leave it out.")
            yield tuple(sample.id for sample in batch), list(pool.map(data.picture, batch))


def set_up_beside(trainer: L.Trainer, module: MLLMModule, data: MLLMDataModule, split: Split) -> None:
    """Set up a split of data that are not the Trainer's as if they were.

    Raises:
        ConfigError: They are written out for another checkpoint than the model's.
        DataError: Something is wrong with them.
    """
    if (data.checkpoint, data.revision) != (module.source.checkpoint, module.source.revision):
        raise ConfigError(
            f"{type(data).__name__} is written out for {data.checkpoint!r}, revision {data.revision}, but the model is "
            f"{module.source.checkpoint!r}, revision {module.source.revision}. Give these data the model's checkpoint."
        )
    data.trainer, data.predict_split = trainer, split
    data.setup("predict")


def of_all_processes(rows: list[Row]) -> list[Row]:
    """Return the rows of this process, then those of the next one, and so on; each process gets all."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    gathered: list[list[Row]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]


def check_features(
    trainer: L.Trainer, pl_module: L.LightningModule, points: Sequence[Point], cache: FeatureCache | None
) -> None:
    """Refuse at the start what `features` would refuse when it is first called, an epoch later.

    Raises:
        ConfigError: The data has no labels, a point does not exist in this model, or there is a cache although the
            vision tower is trained.
    """
    class_names(trainer)
    Tapper(mllm(pl_module).backbone, points, cache)


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
