"""Samples, batches, pictures and features of a split, for callbacks that use the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import lightning as L
from PIL import Image

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.callbacks.trainer_state import (
    trainer_class_names,
    trainer_datamodule,
    trainer_is_trial,
    trainer_mllm,
)
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.sampler import limit_sampling
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.probing.features.cache import FeatureCache
from lightning_mllm.probing.features.extraction import ExtractedSamples, extract_samples
from lightning_mllm.probing.features.feature_set import FeatureSet
from lightning_mllm.probing.features.points import Point
from lightning_mllm.probing.features.tapping import Tapper
from lightning_mllm.progress import track
from lightning_mllm.types import Sample


def watched_samples(
    trainer: L.Trainer, split: Split, data: MLLMDataModule | None = None
) -> Sequence[Sample]:
    """Return the samples of a split that a callback goes through, in order.

    From the validation and the test split these are the samples that the model itself is evaluated
    on, as limited by `limit_val_batches` and `limit_test_batches`: a probe has the same N as the
    model. The training split is used as a whole. A limit on its batches holds per epoch, with
    other samples in each epoch, and its first samples may all be of one class. Only a trial run
    with `fast_dev_run` limits it too. Other `data` than the Trainer's are limited in the same way
    as the training split.
    """
    limits: dict[Split, int | float] = {
        "train": trainer.limit_train_batches if trainer_is_trial(trainer) else 1.0,
        "val": trainer.limit_val_batches,
        "test": trainer.limit_test_batches,
    }
    limit = limits[split if data is None else "train"]
    own = trainer_datamodule(trainer) if data is None else data
    return limit_sampling(own.samples[split], limit, own.eval_batch_size)


def watched_batches(
    trainer: L.Trainer, split: Split, what: str, data: MLLMDataModule | None = None
) -> Iterator[MultimodalBatch]:
    """Return the batches of `watched_samples`, and show how many are done.

    Each of several processes gets its share.

    Args:
        trainer: The Trainer, with its data.
        split: The split that is gone through.
        what: What is done with the batches, for the progress bar.
        data: Other data than the Trainer's.
    """
    own = trainer_datamodule(trainer) if data is None else data
    loader: Iterable[MultimodalBatch] = own.plain_dataloader(split)  # sets up the split first
    samples = watched_samples(trainer, split, data)
    count = math.ceil(len(samples) / own.eval_batch_size)
    return track(islice(loader, count), f"{what}: batches of {split}", count)


def open_watched_pictures(
    trainer: L.Trainer, split: Split
) -> Iterator[tuple[tuple[str, ...], list[Image.Image]]]:
    """Open the pictures of `watched_samples` for another model, in the model's own batches.

    Args:
        trainer: The Trainer. Its data have the pictures, and open `num_workers` of them at a time.
        split: Split whose pictures are opened.

    Yields:
        Sample ids and first pictures of a batch; each of several processes gets its share.

    Raises:
        DataError: A picture can't be read, or a sample has none.
    """
    data, samples = trainer_datamodule(trainer), watched_samples(trainer, split)
    batches = math.ceil(len(samples) / data.eval_batch_size)
    shares = islice(data.plain_dataloader(split).batch_sampler, batches)
    with ThreadPoolExecutor(max(1, data.num_workers)) as pool:  # Pillow releases the GIL
        for share in track(shares, f"Pictures: batches of {split}", batches):
            batch = [samples[index] for _, index in share]
            for sample in batch:
                if not sample.images:
                    raise DataError(
                        f"Sample {sample.id!r} has no image to classify. Give it one, or remove "
                        "the sample."
                    )
            yield tuple(sample.id for sample in batch), list(pool.map(data.picture, batch))


def watched_thumbnail(trainer: L.Trainer, sample: Sample, longer_side: int) -> Image.Image:
    """Return a small copy of a sample's first picture, as the model sees it."""
    small = trainer_datamodule(trainer).picture(sample).copy()
    small.thumbnail((longer_side, longer_side))
    return small


def set_up_watched_split(
    trainer: L.Trainer, module: MLLMModule, data: MLLMDataModule, split: Split
) -> None:
    """Set up a split of other data than the Trainer's, as the Trainer would.

    Raises:
        ConfigError: The data are prepared for another checkpoint than the model's.
        DataError: Something is wrong with the data.
    """
    source = module.source
    if (data.checkpoint, data.revision) != (source.checkpoint, source.revision):
        raise ConfigError(
            f"{type(data).__name__} is prepared for {data.checkpoint!r}, revision {data.revision}, "
            f"but the model is {source.checkpoint!r}, revision {source.revision}. Give these data "
            "the model's checkpoint."
        )
    data.trainer, data.predict_split = trainer, split
    data.setup("predict")


def extract_watched_features(
    trainer: L.Trainer,
    pl_module: L.LightningModule,
    split: Split,
    points: Sequence[Point],
    cache: FeatureCache | None = None,
) -> dict[str, FeatureSet]:
    """Extract the features of `watched_samples`, with their classes; see the function below.

    Returns:
        Name of the point -> features.

    Raises:
        ConfigError: The data has no labels, or the model has no such point.
    """
    names = trainer_class_names(trainer)
    return extract_watched_samples(trainer, pl_module, split, points, cache).label(names)


def extract_watched_samples(  # noqa: PLR0917 - what, of what, and how
    trainer: L.Trainer,
    pl_module: L.LightningModule,
    split: Split,
    points: Sequence[Point],
    cache: FeatureCache | None = None,
    patches: int = 0,
) -> ExtractedSamples:
    """Read `watched_samples` at points with the current weights; every process gets all.

    Args:
        trainer: The Trainer, with its data.
        pl_module: The MLLMModule.
        split: The split that is gone through.
        points: Where features are read.
        cache: Stores the features of a frozen vision tower.
        patches: How many patches of each picture are kept.

    Raises:
        ConfigError: The model has no such point.
    """
    module = trainer_mllm(pl_module)
    batches = watched_batches(trainer, split, "Features")
    running = module.adapted.autocast(module.device.type)
    return extract_samples(
        module.backbone, batches, points, cache=cache, running=running, patches=patches
    )


def check_watched_features(
    trainer: L.Trainer,
    pl_module: L.LightningModule,
    points: Sequence[Point],
    cache: FeatureCache | None,
    *,
    patches: int = 0,
) -> None:
    """Refuse at the start what `extract_watched_samples` would refuse an epoch later.

    Raises:
        ConfigError: The model has no such point, there is a cache although the vision tower is
            trained, or patches are kept and the model packs them.
    """
    Tapper(trainer_mllm(pl_module).backbone, points, cache, patches=patches)
