"""Runs a batch through the model, as far as the points need, and keeps a vector per sample."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from lightning_mllm.batches import Image, MultimodalBatch
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import hook_inputs
from lightning_mllm.models.layers import layers_and_norm, run_layers_uncompiled
from lightning_mllm.models.vision import EncodedImage, ImageStates
from lightning_mllm.probing.features.cache import FeatureCache
from lightning_mllm.probing.features.points import Point
from lightning_mllm.probing.features.pooling import pool
from lightning_mllm.types import Segment

# grids whose patches are not those of a square, row by row, and what they are instead
_NOT_SQUARE: Mapping[str | None, str] = {
    "merged": "form a rectangle of the picture's own shape and come in blocks that are merged",
    "rows": "form a rectangle of the picture's own shape",
    None: "come in an order that is not known",
}


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
        ConfigError: A point does not exist in this model, or the tower is trained and there is a
            cache.
    """

    def __init__(
        self, backbone: Backbone, points: Sequence[Point], cache: FeatureCache | None = None
    ) -> None:
        _check_points(points, backbone)
        self._backbone, self._cache = backbone, cache
        self._path = backbone.vision_path
        # which view is the whole picture
        self._whole = -1 if self._path.family.grid in ("tiles", "splits") else 0
        self._device = backbone.model.device
        self._at: defaultdict[str, list[Point]] = defaultdict(list)  # place -> points
        for point in points:
            self._at[point.place].append(point)
        if cache is not None and backbone.trains_vision:
            raise ConfigError(
                "The vision tower is trained, so its features change and a cache of them is of no "
                "use. Leave the feature cache out, or choose a freeze policy that keeps the tower "
                "frozen."
            )

    @cached_property
    def _source(self) -> str:
        """What the features of the tower depend on besides the image; with a cache it is frozen."""
        kind = self._device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else ""
        return f"{self._path.fingerprint()} {kind} {precision}"

    def tap(self, batch: MultimodalBatch) -> TappedBatch:
        """Return the features of a batch, best on the CPU: only what the tower reads is moved.

        Raises:
            ConfigError: A pooling does not work with this model.
            DataError: A sample has no image or no class.
        """
        _check_samples(batch)
        images = self._observe(batch.images)
        vectors: dict[str, Tensor] = {}
        for point in self._at["pre"]:
            before = [self._before_projector(image, point) for image in images]
            vectors[point.name] = _pool_samples(before, batch, point, self._whole)
        encoded = [image.encoded for image in images]
        self._check_grid(images)
        for point in self._at["post"]:
            tokens = [each.tokens for each in encoded]
            vectors[point.name] = _pool_samples(_as_one_view(tokens), batch, point)
        vectors |= self._tap_llm(batch, encoded)
        return TappedBatch(batch.sample_ids, batch.targets.cpu(), vectors)

    def _observe(self, images: Sequence[Image]) -> list[ImageStates]:
        """Run tower and projector, or the projector alone on what the cache has of the tower."""
        cache = self._cache
        if cache is None:
            return self._path.observe(images)
        states = []
        for image in images:
            half, computed = cache.fetch(self._source, image, partial(self._run_tower, image))
            # in this order, half the bytes go to the device
            states.append(half.to(self._device).to(computed))
        return self._path.replay(images, states)

    def _run_tower(self, image: Image) -> Tensor:
        (seen,) = self._path.observe([image])
        return seen.tower

    def _before_projector(self, image: ImageStates, point: Point) -> Tensor:
        """Return (views, tokens, width): what is pooled before the projector."""
        if point.pooling != "cls":
            return image.projected_from
        token = self._path.class_token(image.tower)
        if token is None:
            raise ConfigError(
                "Pooling 'cls' needs a class token, and this vision tower has none. Use mean or "
                "grid."
            )
        return token[:, None]

    def _check_grid(self, images: Sequence[ImageStates]) -> None:
        """Refuse pooling on a grid where the projected tokens are of several views."""
        if all(point.pooling != "grid" for point in (*self._at["post"], *self._at["image"])):
            return
        for image in images:
            views = len(image.projected_from)
            if views > 1:
                raise ConfigError(
                    "Pooling 'grid' needs the tokens of one square view, but this model packs "
                    f"{views} views of an image into {len(image.encoded.tokens)} tokens. Use mean "
                    "or max after its projector."
                )

    def _tap_llm(
        self, batch: MultimodalBatch, encoded: Sequence[EncodedImage]
    ) -> dict[str, Tensor]:
        """Run the LLM, if it has points: layer k is the state after k layers, before any norm."""
        points = (*self._at["image"], *self._at["last"])
        if not points:
            return {}
        batch = replace(batch, images=()).to(self._device)
        lengths = [len(each.tokens) for each in encoded]
        vectors: dict[str, Tensor] = {}

        def keep(point: Point, hidden: Tensor) -> None:  # hidden: (batch, sequence, width)
            if point.place == "last":
                vectors[point.name] = hidden[batch.spans[Segment.LAST]].float().cpu()
            else:
                tokens = hidden[batch.spans[Segment.IMAGE]].split(lengths)
                vectors[point.name] = _pool_samples(_as_one_view(tokens), batch, point)

        modules = layers_and_norm(self._backbone)
        with hook_inputs({point: modules[point.layer or 0] for point in points}, keep):
            run_layers_uncompiled(self._backbone, batch, encoded)
        return vectors


def _as_one_view(images: Sequence[Tensor]) -> list[Tensor]:
    """(tokens, width) of each image -> (1, tokens, width)."""
    return [tokens[None] for tokens in images]


def _pool_samples(
    images: Sequence[Tensor], batch: MultimodalBatch, point: Point, whole: int = 0
) -> Tensor:
    """Return (samples, width) of all images' (views, tokens, width)."""
    pooled = []
    for start, end in pairwise(accumulate(batch.image_counts, initial=0)):
        pooled.append(pool(images[start:end], point.pooling, point.cells, whole=whole))
    return torch.stack(pooled).cpu()


def _check_points(points: Sequence[Point], backbone: Backbone) -> None:
    if not points or len({point.name for point in points}) < len(points):
        raise ConfigError(
            "There are no points to tap, or one of them is given twice. Give each of them once."
        )
    deepest = len(layers_and_norm(backbone)) - 1
    for point in points:
        if (point.layer or 0) > deepest:
            raise ConfigError(
                f"{point} can't be tapped: the LLM has layers 0 (its input) to {deepest}."
            )
        if point.pooling == "grid" and backbone.family.grid in _NOT_SQUARE:
            raise ConfigError(
                f"{point} can't be tapped: the patches of {backbone.model.config.model_type} "
                f"{_NOT_SQUARE[backbone.family.grid]}, so it can't be told which of them lie in a "
                "cell of a square. Use pooling mean or max."
            )


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
