"""From pictures to what a model takes of them: pixels, and the text that stands in their place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image as PIL
from torch import Tensor

from lightning_mllm.batches import Image
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.files import open_image_file
from lightning_mllm.data.images.geometry import (
    Geometry,
    Size,
    apply_geometry,
    size_before_processor,
)
from lightning_mllm.data.images.views import count_class_tokens, count_views, find_views
from lightning_mllm.data.loading.sample_errors import name_sample_errors
from lightning_mllm.types import LazyImage, Sample

# what a processor returns of the text; all other tensors are the picture's
_OF_TEXT = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "text_replacement_offsets",
    "labels",
)


@dataclass(frozen=True)
class PictureText:
    """What stands for a picture in the text that the model reads.

    Attributes:
        text: The text, in which each run of feature tokens is one token.
        runs: How many visual tokens each of these stands for.
        frame: How many other tokens the text has, tokenised alone: row breaks, names of tiles.
    """

    text: str
    runs: tuple[int, ...]
    frame: int = 0

    @property
    def features(self) -> int:
        """How many visual tokens the picture has."""
        return sum(self.runs)

    def __len__(self) -> int:
        return self.features + self.frame


class Picture(NamedTuple):
    """A picture as the model takes it.

    Attributes:
        image: What the processor returns for it, by name.
        size: The size of the picture as it was opened.
        text: What stands for the picture in the text.
    """

    image: Image
    size: Size
    text: PictureText


class PictureReader:
    """Reads pictures for one checkpoint.

    Args:
        processor: The processor of the checkpoint.
        geometry: How pictures are made square.

    Attributes:
        example: What stands for a small picture, for texts that begin and end as with any other.
    """

    def __init__(self, processor: CheckpointProcessor, geometry: Geometry) -> None:
        self._processor, self._geometry = processor, geometry
        self._run = re.compile(f"(?:{re.escape(processor.feature_token)})+")
        self._frames: dict[str, int] = {}
        self._texts: dict[object, PictureText] = {}
        self._text_of_size: dict[Size, PictureText] = {}
        self._views_of_size: dict[Size, int] = {}
        self.example = self._process(PIL.new("RGB", (8, 8)))[1]
        self._has_frame = self.example.text != processor.feature_token

    def read(self, sample: Sample) -> list[Picture]:
        """Open a sample's pictures and make their pixels.

        One picture is open at a time: eight decoded photographs can take 1 GB.

        Raises:
            DataError: One can't be opened or processed; the message names the sample.
        """
        with name_sample_errors(sample):
            pictures = []
            for k, image in enumerate(sample.images, 1):
                opened = open_image_file(image, _name_image(sample, image, k))
                prepared = apply_geometry(opened, self._geometry, self._processor.image_processor)
                pixels, text = self._process(prepared)
                pictures.append(Picture(pixels, opened.size, text))
            return pictures

    def find_text(self, size: Size) -> PictureText:
        """Return what stands for a picture of a size, without opening it.

        The text depends on nothing but the grids of visual tokens. So one picture of each layout is
        processed, and none where the family writes visual tokens alone.
        """
        if size not in self._text_of_size:
            self._text_of_size[size] = self._find_text(size)
        return self._text_of_size[size]

    def count_views(self, size: Size) -> int:
        """Return how many views the processor makes of a picture of a size."""
        if size not in self._views_of_size:
            before = size_before_processor(size, self._geometry)
            self._views_of_size[size] = count_views(before, self._processor)
        return self._views_of_size[size]

    def _find_text(self, size: Size) -> PictureText:
        views = find_views(size, self._geometry, self._processor)
        if views is not None and not self._has_frame:
            count = count_class_tokens(self._processor) + sum(map(len, views))
            return PictureText(self._processor.feature_token, (count,))
        shape = size_before_processor(size, self._geometry)
        layout: object = shape if views is None else tuple(view.layout for view in views)
        if layout not in self._texts:
            self._texts[layout] = self._process(PIL.new("RGB", shape))[1]
        return self._texts[layout]

    def _process(self, picture: PIL.Image) -> tuple[dict[str, Tensor], PictureText]:
        """Call the family's processor on one picture, and return its tensors and its text."""
        call: Any = self._processor.hf  # each family's class can be called
        made: Mapping[str, Any] = call(
            images=[picture],
            text=[self._processor.placeholder],
            add_special_tokens=False,
            return_attention_mask=False,
            return_text_replacement_offsets=True,
            return_tensors="pt",
        )
        runs: list[int] = []
        token = self._processor.feature_token

        def shorten(run: re.Match[str]) -> str:
            runs.append(len(run.group()) // len(token))
            return token

        text = self._run.sub(shorten, made["text_replacement_offsets"][0][0]["replacement"])
        image = {}
        for name, value in made.items():
            if name not in _OF_TEXT and isinstance(value, Tensor):
                image[name] = value
        return image, PictureText(text, tuple(runs), self._count_frame(text, len(runs)))

    def _count_frame(self, text: str, runs: int) -> int:
        if text not in self._frames:
            ids = self._processor.tokenizer.encode(text, add_special_tokens=False)
            self._frames[text] = len(ids) - runs
        return self._frames[text]


def _name_image(sample: Sample, image: Path | PIL.Image | LazyImage, k: int) -> str:
    """Return what errors call the k-th image of a sample."""
    if isinstance(image, Path):
        return f"{image} (sample {sample.id!r})"
    return f"Image {k} of sample {sample.id!r}"
