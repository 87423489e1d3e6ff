"""Keeps a vector per sample of what is read at points, with its class: what probes take.

Some patches of each picture can be kept, too, before and behind the projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.probing.change.reconstruction import PicturePatches
from lightning_mllm.probing.features.cache import FeatureCache
from lightning_mllm.probing.features.points import Point
from lightning_mllm.probing.features.reading import PointReader
from lightning_mllm.store.seeds import torch_generator
from lightning_mllm.types import Segment

_BEFORE, _BEHIND = Point("pre", pooling="none"), Point("post", pooling="none")


@dataclass(frozen=True)
class TappedBatch:
    """The features of a batch, on the CPU.

    Attributes:
        sample_ids: Id of each sample.
        targets: (samples,) class indices, -1 where a sample has none.
        vectors: Point's name -> (samples, width), float32.
        patches: Some patches of each picture, if they are kept.
    """

    sample_ids: tuple[str, ...]
    targets: Tensor
    vectors: dict[str, Tensor]
    patches: tuple[PicturePatches, ...] = ()


class Tapper:
    """Taps one batch after the other; see `extraction.extract`.

    Args:
        backbone: The model.
        points: Where features are tapped.
        cache: Where features of the tower are kept.
        patches: How many patches of a picture are kept, drawn by its sample's id.

    Raises:
        ConfigError: A point does not exist in this model or keeps all tokens, or the tower is
            trained and there is a cache; or patches are kept, and the model packs them.
    """

    def __init__(
        self,
        backbone: Backbone,
        points: Sequence[Point],
        cache: FeatureCache | None = None,
        *,
        patches: int = 0,
    ) -> None:
        for point in points:
            if point.pooling == "none" and point.place != "last":
                raise ConfigError(
                    f"{point} can't be probed: a probe takes one vector per sample, and pooling "
                    "'none' keeps each token. Use mean or max; `lightning extract` writes tokens."
                )
        if patches and any("image_newline" in name for name in backbone.family.projector):
            raise _explain_patches(backbone, "it packs the tokens of several views")
        self._backbone, self._patches = backbone, patches
        self._reader = PointReader(backbone, points, cache)
        if patches:
            try:
                self._reader = PointReader(backbone, [*points, _BEFORE, _BEHIND], cache)
            except ConfigError as error:  # the model has no such row
                raise _explain_patches(backbone, str(error)) from error

    def tap(self, batch: MultimodalBatch) -> TappedBatch:
        """Return the features of a batch, best on the CPU: only what the tower reads is moved.

        Raises:
            ConfigError: A pooling does not work with this model.
            DataError: A sample has no image.
        """
        found = self._reader.read(batch)
        patches: list[PicturePatches] = []
        if self._patches:
            before, behind = found.pop(_BEFORE.name), found.pop(_BEHIND.name)
            for row in range(len(batch)):
                pair = before.samples[row], behind.samples[row]
                patches.append(self._draw_patches(batch, row, *pair))
        vectors: dict[str, Tensor] = {}
        for name, states in found.items():
            vectors[name] = torch.cat(states.samples).float().cpu()
        return TappedBatch(batch.sample_ids, batch.targets.cpu(), vectors, tuple(patches))

    def _draw_patches(
        self, batch: MultimodalBatch, row: int, before: Tensor, behind: Tensor
    ) -> PicturePatches:
        """Keep some patches of a sample, none of which is padding alone.

        Args:
            batch: The batch.
            row: Which sample of it.
            before: (tokens, width), all that enter the projection.
            behind: (tokens, another width), all that leave it.
        """
        if len(before) != len(behind):
            counts = f"{len(before)} patches enter it and {len(behind)} tokens leave it"
            raise _explain_patches(self._backbone, counts)
        sample_id, spans = batch.sample_ids[row], batch.spans
        image = spans[Segment.IMAGE][row]
        shown, other, padding = (
            spans[segment][row][image].cpu()
            for segment in (Segment.IMAGE_OBJECT, Segment.IMAGE_OTHER, Segment.IMAGE_PADDING)
        )
        places = (~padding).nonzero().flatten()
        order = torch.randperm(len(places), generator=torch_generator("patches", sample_id))
        drawn = places[order[: self._patches]].sort().values
        known = bool((shown | other).any())
        return PicturePatches(
            sample_id=sample_id,
            before=before.cpu()[drawn],
            behind=behind.cpu()[drawn],
            shows=shown[drawn] if known else None,
        )


def _explain_patches(backbone: Backbone, reason: str) -> ConfigError:
    return ConfigError(
        f"The patches of a {backbone.model.config.model_type} can't be read back from its tokens, "
        f"one from one: {reason.rstrip('.')}. Compare neighbourhoods alone (reconstruction: false)."
    )
