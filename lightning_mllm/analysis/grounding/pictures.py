"""The pictures that samples are shown: their own, others', and two that say less than a picture.

- `blind`: pixels next to 0 after the processor's normalisation, which is its mean colour. It has
  the size, and so the visual tokens, of the sample's own picture.
- `shuffled`: the visual tokens of the sample's own picture in an order drawn by seed. What there is
  to see is told, where it is is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_mllm.batches import Image, MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.vision import EncodedImage
from lightning_mllm.store.seeds import seed_rank_of, torch_generator

_PIXELS = "pixel_values"
_BLANK = 1e-4  # some models take a picture of nothing but 0 for padding


@dataclass(frozen=True)
class SeenPicture:
    """What a picture is to the LLM.

    Attributes:
        tokens: The picture's tokens in the sample that it came with, see `splicing.cut_picture`.
        encoded: What the LLM gets at its visual tokens.
        blind: What the LLM gets for a picture of this size that shows nothing.
    """

    tokens: MultimodalBatch
    encoded: EncodedImage
    blind: EncodedImage

    def shuffle(self, name: str, seed: int) -> EncodedImage:
        """Return the visual tokens in another order, drawn by the picture's name and a seed."""
        count = len(self.encoded.tokens)
        order = torch.randperm(count, generator=torch_generator("shuffled", seed, name))
        shape = self.encoded.features.shape
        return replace(
            self.encoded,
            features=self.encoded.tokens[order].reshape(shape),
            deep=tuple(layer[order] for layer in self.encoded.deep),
        )


class PictureEncoder:
    """Computes what the LLM gets for pictures; keeps what it gets for those that show nothing."""

    def __init__(self) -> None:
        self._blind: dict[tuple[object, ...], EncodedImage] = {}

    def encode(self, backbone: Backbone, images: Sequence[Image]) -> list[EncodedImage]:
        """Return what the LLM gets for each picture, on the CPU."""
        encoded = backbone.encode_images(images)
        return [_map_encoded(each, lambda tensor: tensor.cpu()) for each in encoded]

    def encode_blind(self, backbone: Backbone, image: Image) -> EncodedImage:
        """Return what the LLM gets for a picture of this size that shows nothing, on the CPU.

        The tower runs once more for each size of pictures, and what it gives is kept.
        """
        shapes = [(name, tuple(tensor.shape)) for name, tensor in image.items()]
        rest = [_bytes_of(tensor) for name, tensor in image.items() if name != _PIXELS]
        key = (*shapes, *rest)
        if key not in self._blind:
            empty = {**image, _PIXELS: torch.full_like(image[_PIXELS], _BLANK)}
            (self._blind[key],) = self.encode(backbone, [empty])
        return self._blind[key]


def _bytes_of(tensor: Tensor) -> bytes:
    """Return the values of a tensor of any dtype."""
    return tensor.cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes()


def move_encoded(encoded: EncodedImage, device: torch.device) -> EncodedImage:
    """Return an encoded picture on a device."""
    return _map_encoded(encoded, lambda tensor: tensor.to(device))


def _map_encoded(encoded: EncodedImage, function: Callable[[Tensor], Tensor]) -> EncodedImage:
    return replace(
        encoded,
        features=function(encoded.features),
        deep=tuple(function(layer) for layer in encoded.deep),
    )


def draw_others(pictures: Iterable[str], count: int, seed: int) -> dict[str, list[str]]:
    """Return which others each picture is compared with: the next ones in a circle drawn by seed.

    So each picture is compared with `count` others, and is one of the others of as many.

    Args:
        pictures: Names of the pictures, more than `count`.
        count: How many others.
        seed: Seed of the circle.
    """
    circle = sorted(pictures, key=lambda name: seed_rank_of(name, seed))
    twice = circle + circle
    return {name: twice[at + 1 : at + 1 + count] for at, name in enumerate(circle)}
