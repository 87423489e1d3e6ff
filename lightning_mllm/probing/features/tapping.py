"""One batch through the model, or the part of it that the points need: at each point a vector per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Protocol, cast, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.probing.features.cache import FeatureCache
from lightning_mllm.probing.features.points import Place, Point
from lightning_mllm.probing.features.pooling import pool
from lightning_mllm.types import MultimodalBatch, Segment

Image = Mapping[str, Tensor]


class VisionPath(Protocol):
    """What is needed of `models.vision.VisionPath`; features of an image are (views, tokens, width)."""

    def split(self, vision: Mapping[str, Tensor]) -> list[dict[str, Tensor]]: ...  # noqa: D102
    def tower_features(self, images: Sequence[Image]) -> list[Tensor]: ...  # noqa: D102
    def patches(self, features: Tensor) -> Tensor: ...  # noqa: D102
    def class_token(self, features: Tensor) -> Tensor | None: ...  # noqa: D102
    def project(self, features: Sequence[Tensor], images: Sequence[Image]) -> list[Tensor]: ...  # noqa: D102
    def fingerprint(self) -> str: ...  # noqa: D102


class Backbone(Protocol):
    """What is needed of `models.backbone.Backbone`."""

    model: PreTrainedModel

    @property
    def vision_tower(self) -> nn.Module: ...  # noqa: D102
    @property
    def vision_path(self) -> VisionPath: ...  # noqa: D102
    @property
    def decoder(self) -> nn.Module: ...  # noqa: D102


@dataclass(frozen=True)
class Rows:
    """The features of some samples, on the CPU.

    Attributes:
        sample_ids: Per sample.
        targets: (samples,) class indices.
        vectors: Point's name -> (samples, width), float32.
    """

    sample_ids: tuple[str, ...]
    targets: Tensor
    vectors: dict[str, Tensor]


class Tapper:
    """Taps one batch after the other; see `extraction.extract`.

    Raises:
        ConfigError: A point does not exist in this model, or the tower is trained and there is a cache.
    """

    def __init__(self, backbone: Backbone, points: Sequence[Point], cache: FeatureCache | None = None) -> None:
        _check_points(points, backbone)
        self._backbone, self._path, self._cache = backbone, backbone.vision_path, cache
        self._at = {place: [point for point in points if point.place == place] for place in get_args(Place)}
        self._device = backbone.model.device
        if cache is not None and any(parameter.requires_grad for parameter in backbone.vision_tower.parameters()):
            raise ConfigError(
                "The vision tower is trained, so its features change and a cache of them is of no use. Leave the "
                "feature cache out, or choose a freeze policy that keeps the tower frozen."
            )

    @cached_property
    def _source(self) -> str:
        """What the features of the tower, which is frozen where there is a cache, depend on besides the image."""
        kind = self._device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else ""
        return f"{self._path.fingerprint()} {kind} {precision}"

    def tap(self, batch: MultimodalBatch) -> Rows:
        """Return the features of a batch, best on the CPU: of its pixels only what the tower has to see is moved.

        Raises:
            ConfigError: A pooling does not go with this model.
            DataError: A sample has no image or no class.
        """
        _check_samples(batch)
        images = self._path.split(batch.vision)
        features = self._tower_features(images)
        vectors = {}
        for point in self._at["pre"]:
            vectors[point.name] = _pooled([self._before(views, point) for views in features], batch, point)
        if any(self._at[place] for place in ("post", "image", "last")):
            projected = self._path.project(features, images)
            if any(point.pooling == "grid" for point in (*self._at["post"], *self._at["image"])):
                _check_grid(projected, [self._path.patches(views) for views in features])
            for point in self._at["post"]:
                vectors[point.name] = _pooled([tokens[None] for tokens in projected], batch, point)
            vectors |= self._tap_llm(batch, projected)
        return Rows(batch.sample_ids, batch.targets.cpu(), vectors)

    def _tower_features(self, images: Sequence[Image]) -> list[Tensor]:
        if self._cache is None:
            return self._path.tower_features(images)
        features = []
        for image in images:
            half, computed = self._cache.fetch(self._source, image, partial(self._one_image, image))
            features.append(half.to(self._device).to(computed))  # in this order, half the bytes go to the device
        return features

    def _one_image(self, image: Image) -> Tensor:
        (features,) = self._path.tower_features([image])
        return features

    def _before(self, views: Tensor, point: Point) -> Tensor:
        """Return (views, tokens, width): what is pooled before the projector."""
        if point.pooling != "cls":
            return self._path.patches(views)
        token = self._path.class_token(views)
        if token is None:
            raise ConfigError("Pooling 'cls' needs a class token, and this vision tower has none. Use mean or grid.")
        return token[:, None]

    def _tap_llm(self, batch: MultimodalBatch, projected: Sequence[Tensor]) -> dict[str, Tensor]:
        """Run the LLM, if it has points: layer k is what enters block k, or after the last block the final norm.

        It is run without torch.compile: a model that was compiled without these hooks would go on without them.
        """
        points = (*self._at["image"], *self._at["last"])
        if not points:
            return {}
        batch = replace(batch, vision={}).to(self._device)
        vectors: dict[str, Tensor] = {}

        def hook(point: Point) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def tap(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                hidden = inputs[0]  # (batch, sequence, width)
                if point.place == "last":
                    vectors[point.name] = hidden[batch.spans[Segment.LAST]].float().cpu()
                else:
                    tokens = hidden[batch.spans[Segment.IMAGE]].split([len(each) for each in projected])
                    vectors[point.name] = _pooled([each[None] for each in tokens], batch, point)

            return tap

        stations = _stations(self._backbone)
        handles = [stations[point.layer or 0].register_forward_pre_hook(hook(point)) for point in points]
        encoded = BaseModelOutputWithPooling(pooler_output=list(projected))  # type: ignore[arg-type]  # as the model's own
        try:
            self._backbone.model.base_model.forward(  # a call would be of what torch.compile made of it
                **batch.model_inputs(), mm_encoder_outputs={"image": encoded}, use_cache=False
            )
        finally:
            for handle in handles:
                handle.remove()
        return vectors


def _pooled(images: Sequence[Tensor], batch: MultimodalBatch, point: Point) -> Tensor:
    """Return (samples, width) of all images' (views, tokens, width)."""
    bounds = pairwise(accumulate(batch.image_counts, initial=0))
    return torch.stack([pool(images[start:end], point.pooling, point.cells) for start, end in bounds]).cpu()


def _stations(backbone: Backbone) -> list[nn.Module]:
    """Return the modules that the residual stream enters, one after the other."""
    return [*cast(nn.ModuleList, backbone.decoder.layers), cast(nn.Module, backbone.decoder.norm)]


def _check_points(points: Sequence[Point], backbone: Backbone) -> None:
    if not points or len({point.name for point in points}) < len(points):
        raise ConfigError("There are no points to tap, or one of them is given twice. Give each of them once.")
    deepest = len(_stations(backbone)) - 1
    for point in points:
        if (point.layer or 0) > deepest:
            raise ConfigError(f"{point} can't be tapped: the LLM has layers 0 (its input) to {deepest}.")


def _check_samples(batch: MultimodalBatch) -> None:
    for sample_id, images, target in zip(batch.sample_ids, batch.image_counts, batch.targets.tolist(), strict=True):
        if not images:
            raise DataError(f"Sample {sample_id!r} has no image, so there is nothing to probe. Leave it out.")
        if target < 0:
            raise DataError(f"Sample {sample_id!r} has no class. Probes need data with labels.")


def _check_grid(projected: Sequence[Tensor], patches: Sequence[Tensor]) -> None:
    for tokens, views in zip(projected, patches, strict=True):
        if len(tokens) != views.shape[1]:
            raise ConfigError(
                f"Pooling 'grid' needs one token per patch of a square, but this model packs {len(views)} views of an "
                f"image, with row separators, into {len(tokens)} tokens. Use mean or max behind its projector."
            )
