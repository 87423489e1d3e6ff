"""From pictures to what a model takes of them: pixels, and the tokens that stand in their place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from lightning_mllm.data.images.files import open_image
from lightning_mllm.data.images.geometry import (
    Geometry,
    Size,
    apply_geometry,
    size_before_tiling,
)
from lightning_mllm.data.images.views import count_views
from lightning_mllm.data.loading.sample_errors import name_errors
from lightning_mllm.types import LazyImage, Sample


class Picture(NamedTuple):
    """A picture as the model takes it.

    Attributes:
        pixels: The tensors that the processor makes, by name.
        size: The size of the picture as it was opened.
        ids: The tokens that stand for the picture.
    """

    pixels: Mapping[str, Tensor]
    size: Size
    ids: list[int]


class PictureReader:
    """Reads pictures for one checkpoint.

    Args:
        processor: The processor of the checkpoint.
        geometry: How pictures are made square.
    """

    def __init__(self, processor: ProcessorMixin, geometry: Geometry) -> None:
        self._processor, self._geometry = processor, geometry
        self._ids: dict[str, list[int]] = {}
        self._counts: dict[Size, int] = {}

    def read(self, sample: Sample) -> list[Picture]:
        """Open a sample's pictures and make their pixels.

        One picture is open at a time: eight decoded photographs can take 1 GB.

        Raises:
            DataError: One can't be opened or processed; the message names the sample.
        """
        with name_errors(sample):
            pictures = []
            for k, image in enumerate(sample.images, 1):
                pictures.append(self._read_one(image, _name_image(sample, image, k)))
            return pictures

    def count_tokens(self, size: Size) -> int:
        """Return how many tokens stand for a picture of a size."""
        width, height = size_before_tiling(size, self._geometry)
        if (width, height) not in self._counts:
            processor: Any = self._processor  # each family's class has this method
            counts = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
            self._counts[width, height] = int(counts["num_image_tokens"][0])
        return self._counts[width, height]

    def count_views(self, size: Size) -> int:
        """Return how many views the processor makes of a picture of a size."""
        return count_views(size_before_tiling(size, self._geometry), self._processor)

    def _read_one(self, image: Path | Image.Image | LazyImage, name: str) -> Picture:
        processor = self._processor.image_processor
        opened = open_image(image, name)
        features = processor(
            [apply_geometry(opened, self._geometry, processor)], return_tensors="pt"
        )
        names = [name for name in processor.model_input_names if name in features]
        pixels = {name: features[name] for name in names}
        return Picture(pixels, opened.size, self._find_image_ids(pixels))

    def _find_image_ids(self, pixels: Mapping[str, Tensor]) -> list[int]:
        """Return the tokens that stand for a picture: one per visual feature."""
        text = self._processor.replace_image_token(dict(pixels), 0)
        if text not in self._ids:
            self._ids[text] = self._processor.tokenizer.encode(text, add_special_tokens=False)
        return self._ids[text]


def _name_image(sample: Sample, image: object, k: int) -> str:
    """Return what errors call the k-th image of a sample."""
    if isinstance(image, Path):
        return f"{image} (sample {sample.id!r})"
    return f"Image {k} of sample {sample.id!r}"
