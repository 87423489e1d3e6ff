"""Which part of the tensors of a batch of images is each image's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_mllm.batches import Image
from lightning_mllm.errors import CheckpointError


class ImageShares:
    """Which part of the tower's and the projector's tensors is each image's.

    Args:
        images: The images of a batch.
        tokens: How many visual tokens each has.
    """

    def __init__(self, images: Sequence[Image], tokens: Sequence[int]) -> None:
        self._views = [_count_views(image) for image in images]
        self._tokens = tokens

    def split(self, states: Tensor) -> list[Tensor]:
        """Return (views, tokens, width) of each image.

        Args:
            states: (views of all, tokens, width); or the patches of all images, one after the
                other, (patches, width) or (1, patches, width).
        """
        if len(states) == sum(self._views) and states.ndim == 3:
            return list(states.split(self._views))
        flat = states.reshape(-1, states.shape[-1])
        per_token = len(flat) // sum(self._tokens)  # patches that are merged into a token
        patches = [per_token * count for count in self._tokens]
        return [own[None] for own in flat.split(patches)]


def count_image_rows(images: Sequence[Image], rows: int) -> list[int]:
    """Return how many rows of the features are each image's: as many as it has views.

    Raises:
        CheckpointError: There are more or fewer rows than views.
    """
    views = [_count_views(image) for image in images]
    if sum(views) != rows:
        raise CheckpointError(
            f"The model returns {rows} rows of features for images of {views} views, so it can't "
            "be told which are whose. Let its `get_image_features` return a list, one per image."
        )
    return views


def _count_views(image: Image) -> int:
    """Return how many pictures of one size the processor made of an image."""
    pixels = image["pixel_values"]
    return int(pixels.shape[:-3].numel()) if pixels.ndim > 3 else 1
