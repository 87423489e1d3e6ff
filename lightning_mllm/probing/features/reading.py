"""Runs a batch through the model, as far as the points need, and reads the states at them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.batches import Image, MultimodalBatch
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import hook_inputs
from lightning_mllm.models.layers import layers_and_norm, run_layers_uncompiled
from lightning_mllm.models.vision import EncodedImage, ImageStates
from lightning_mllm.probing.features.cache import FeatureCache
from lightning_mllm.probing.features.points import IN_LLM, OF_PICTURES, Place, Point
from lightning_mllm.probing.features.pooling import pool
from lightning_mllm.types import Segment

# grids whose patches are not those of a square, row by row, and what they are instead
_NOT_SQUARE: Mapping[str | None, str] = {
    "merged": "form a rectangle of the picture's own shape and come in blocks that are merged",
    "rows": "form a rectangle of the picture's own shape",
    None: "come in an order that is not known",
}


@dataclass(frozen=True)
class PointStates:
    """What was read of the samples of a batch at one point, on the model's device.

    Attributes:
        samples: (rows, width) of each sample: one row where tokens were pooled, else a row per
            token.
        images: (views, tokens) of each image of each sample, whose rows are in this order; empty
            where tokens were pooled, and for text.
    """

    samples: list[Tensor]
    images: list[list[tuple[int, int]]]


class PointReader:
    """Reads states at points of a model, one batch after the other.

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
        self._at: defaultdict[Place, list[Point]] = defaultdict(list)
        for point in points:
            self._at[point.place].append(point)
        self._tower_layers = sorted({point.layer or 0 for point in self._at["tower"]})
        self._reads_pictures = any(self._at[place] for place in OF_PICTURES)
        if cache is not None and backbone.trains_vision:
            raise ConfigError(
                "The vision tower is trained, so its features change and a cache of them is of no "
                "use. Leave the feature cache out, or choose a freeze policy that keeps the tower "
                "frozen."
            )
        if cache is not None and self._at["tower"]:
            raise ConfigError(
                f"{self._at['tower'][0]} can't be tapped with a feature cache, which keeps only "
                "what the projector gets of the tower. Leave the cache out, or this point."
            )

    @cached_property
    def _source(self) -> str:
        """What the features of the tower depend on besides the image; with a cache it is frozen."""
        kind = self._device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else ""
        return f"{self._path.fingerprint()} {kind} {precision}"

    def read(self, batch: MultimodalBatch) -> dict[str, PointStates]:
        """Return the states of a batch, best on the CPU: only what the tower reads is moved.

        Returns:
            Point's name -> states; pooled ones are float32, the others as the model computes them.

        Raises:
            ConfigError: A pooling does not work with this model.
            DataError: A sample has no image, and a point is about images.
        """
        if self._reads_pictures:
            _check_images(batch)
        images = self._observe(batch.images) if batch.images else []
        found: dict[str, PointStates] = {}
        for point in self._at["tower"]:
            found[point.name] = self._read_images(
                [self._at_tower_layer(image, point) for image in images], batch, point, self._whole
            )
        for point in self._at["pre"]:
            found[point.name] = self._read_images(
                [self._before_projector(image, point) for image in images],
                batch,
                point,
                self._whole,
            )
        encoded = [image.encoded for image in images]
        self._check_grid(images)
        for point in self._at["post"]:
            tokens = _as_one_view([each.tokens for each in encoded])
            found[point.name] = self._read_images(tokens, batch, point)
        return found | self._read_llm(batch, encoded)

    def _observe(self, images: Sequence[Image]) -> list[ImageStates]:
        """Run tower and projector, or the projector alone on what the cache has of the tower."""
        cache = self._cache
        if cache is None:
            return self._path.observe(images, self._tower_layers)
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
        """Return (views, tokens, width): what is read before the projector."""
        if point.pooling != "cls":
            return image.projected_from
        return self._class_token(image.tower)

    def _at_tower_layer(self, image: ImageStates, point: Point) -> Tensor:
        """Return (views, tokens, width): what is read at a layer of the tower."""
        states = image.layers[point.layer or 0]
        if point.pooling == "cls":
            return self._class_token(states[None])
        if point.pooling == "none":
            return states
        return states[:, self._path.count_class_tokens(states.shape[1]) :]

    def _class_token(self, tower: Tensor) -> Tensor:
        """(layers, views, tokens, width) -> (views, 1, width)."""
        token = self._path.class_token(tower)
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

    def _read_llm(
        self, batch: MultimodalBatch, encoded: Sequence[EncodedImage]
    ) -> dict[str, PointStates]:
        """Run the LLM, if it has points: layer k is the state after k layers, before any norm."""
        points = list(chain.from_iterable(self._at[place] for place in IN_LLM))
        if not points:
            return {}
        batch = replace(batch, images=()).to(self._device)
        lengths = [len(each.tokens) for each in encoded]
        found: dict[str, PointStates] = {}

        def keep(point: Point, hidden: Tensor) -> None:  # hidden: (batch, sequence, width)
            if point.place == "image":
                tokens = _as_one_view(hidden[batch.spans[Segment.IMAGE]].split(lengths))
                found[point.name] = self._read_images(tokens, batch, point)
                return
            masks = point_positions(batch, point.place)
            rows = [own[mask] for own, mask in zip(hidden, masks, strict=True)]
            shapes: list[list[tuple[int, int]]] = [[] for _ in rows]
            if point.place != "last" and point.pooling != "none":
                rows = [pool([own[None]], point.pooling)[None] for own in rows]
            elif point.place == "prompt":
                for k, (start, end) in enumerate(_share_images(batch)):
                    shapes[k] = [(1, count) for count in lengths[start:end]]
            found[point.name] = PointStates(rows, shapes)

        modules = layers_and_norm(self._backbone)
        with hook_inputs({point: modules[point.layer or 0] for point in points}, keep):
            run_layers_uncompiled(self._backbone, batch, encoded)
        return found

    def _read_images(
        self, images: Sequence[Tensor], batch: MultimodalBatch, point: Point, whole: int = 0
    ) -> PointStates:
        """Return the states of all images' (views, tokens, width), sample by sample."""
        samples, shapes = [], []
        for start, end in _share_images(batch):
            own = images[start:end]
            if point.pooling == "none":
                samples.append(torch.cat([views.flatten(0, 1) for views in own]))
                shapes.append([(len(views), views.shape[1]) for views in own])
            else:
                samples.append(pool(own, point.pooling, point.cells, whole=whole)[None])
                shapes.append([])
        return PointStates(samples, shapes)


def point_positions(batch: MultimodalBatch, place: Place) -> Tensor:
    """Return which positions of a batch a place in the LLM has: (batch, sequence) bool."""
    last = batch.spans[Segment.LAST]
    if place == "last":
        return last
    if place == "image":
        return batch.spans[Segment.IMAGE]
    before = last.long().flip(-1).cumsum(-1).flip(-1).bool()  # LAST and what comes before it
    prompt = before & batch.attention_mask.bool()
    return prompt if place == "prompt" else prompt & ~batch.spans[Segment.IMAGE]


def _share_images(batch: MultimodalBatch) -> list[tuple[int, int]]:
    """Return which of a batch's images are each sample's: from, up to."""
    return list(pairwise(accumulate(batch.image_counts, initial=0)))


def _as_one_view(images: Sequence[Tensor]) -> list[Tensor]:
    """(tokens, width) of each image -> (1, tokens, width)."""
    return [tokens[None] for tokens in images]


def _check_points(points: Sequence[Point], backbone: Backbone) -> None:
    if not points or len({point.name for point in points}) < len(points):
        raise ConfigError(
            "There are no points to tap, or one of them is given twice. Give each of them once."
        )
    deepest = len(layers_and_norm(backbone)) - 1
    model_type = backbone.model.config.model_type
    for point in points:
        if point.place in IN_LLM and (point.layer or 0) > deepest:
            raise ConfigError(
                f"{point} can't be tapped: the LLM has layers 0 (its input) to {deepest}."
            )
        if point.place in ("tower", "pre"):
            _check_tower_point(point, backbone)
        if point.pooling == "grid" and backbone.family.grid in _NOT_SQUARE:
            raise ConfigError(
                f"{point} can't be tapped: the patches of {model_type} "
                f"{_NOT_SQUARE[backbone.family.grid]}, so it can't be told which of them lie in a "
                "cell of a square. Use pooling mean or max."
            )


def _check_tower_point(point: Point, backbone: Backbone) -> None:
    path = backbone.vision_path
    depth = len(path.tower_layers)
    if (point.layer or 0) > depth:
        raise ConfigError(
            f"{point} can't be tapped: the vision tower has layers 0 (its input) to {depth}."
        )
    config: Any = backbone.model.config.vision_config
    if point.pooling == "none" and getattr(config, "fullatt_block_indexes", None):
        raise ConfigError(
            f"{point} can't be kept token by token: the vision tower of "
            f"{backbone.model.config.model_type} orders the patches by windows, so it can't be "
            "told which row is which. Use pooling mean or max, or the place post or image."
        )


def _check_images(batch: MultimodalBatch) -> None:
    for sample_id, images in zip(batch.sample_ids, batch.image_counts, strict=True):
        if not images:
            raise DataError(
                f"Sample {sample_id!r} has no image, so there is nothing to probe. Leave it out."
            )
