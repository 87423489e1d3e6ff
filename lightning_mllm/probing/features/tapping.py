"""Keeps a vector per sample of what is read at points, with its class: what probes take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.probing.features.cache import FeatureCache
from lightning_mllm.probing.features.points import Point
from lightning_mllm.probing.features.reading import PointReader


@dataclass(frozen=True)
class TappedBatch:
    """The features of a batch, on the CPU.

    Attributes:
        sample_ids: Id of each sample.
        targets: (samples,) class indices.
        vectors: Point's name -> (samples, width), float32.
    """

    sample_ids: tuple[str, ...]
    targets: Tensor
    vectors: dict[str, Tensor]


class Tapper:
    """Taps one batch after the other; see `extraction.extract`.

    Raises:
        ConfigError: A point does not exist in this model or keeps all tokens, or the tower is
            trained and there is a cache.
    """

    def __init__(
        self, backbone: Backbone, points: Sequence[Point], cache: FeatureCache | None = None
    ) -> None:
        for point in points:
            if point.pooling == "none" and point.place != "last":
                raise ConfigError(
                    f"{point} can't be probed: a probe takes one vector per sample, and pooling "
                    "'none' keeps each token. Use mean or max; `lightning extract` writes tokens."
                )
        self._reader = PointReader(backbone, points, cache)

    def tap(self, batch: MultimodalBatch) -> TappedBatch:
        """Return the features of a batch, best on the CPU: only what the tower reads is moved.

        Raises:
            ConfigError: A pooling does not work with this model.
            DataError: A sample has no image or no class.
        """
        _check_samples(batch)
        vectors: dict[str, Tensor] = {}
        for name, states in self._reader.read(batch).items():
            vectors[name] = torch.cat(states.samples).float().cpu()
        return TappedBatch(batch.sample_ids, batch.targets.cpu(), vectors)


def _check_samples(batch: MultimodalBatch) -> None:
    targets = batch.targets.tolist()
    for sample_id, images, target in zip(
        batch.sample_ids, batch.image_counts, targets, strict=True
    ):
        if not images:
            raise DataError(
                f"Sample {sample_id!r} has no image, so there is nothing to probe. Leave it out."
            )
        if target < 0:
            raise DataError(f"Sample {sample_id!r} has no class. Probes need data with labels.")
