"""What callbacks that follow features share: which samples, batches and features of a split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from lightning_mllm.callbacks.trainer_state import class_names, mllm
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.sampler import limit_samples
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.probing.features.cache import FeatureCache
from lightning_mllm.probing.features.extraction import extract
from lightning_mllm.probing.features.feature_set import FeatureSet
from lightning_mllm.probing.features.points import Point
from lightning_mllm.probing.features.tapping import Tapper
from lightning_mllm.types import MultimodalBatch, Sample


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
    return limit_samples(own.samples[split], limits[split if data is None else "train"], own.eval_batch_size)


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
