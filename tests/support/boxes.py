"""Pictures with boxes, and what becomes of them."""

import random
from collections.abc import Iterator

from PIL import Image, ImageDraw
from torch import Tensor

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.types import Box, Sample, Segment, Turn


def sample_of(size: tuple[int, int], *boxes: Box, name: str = "a") -> Sample:
    """Draw the boxes in green, both corners included."""
    image = Image.new("RGB", size)
    for box in boxes:
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        ImageDraw.Draw(image).rectangle(corners, fill=(0, 255, 0))
    turns = [Turn("user", "What is it?", images=1), Turn("assistant", "two")]
    return Sample(id=name, images=[image], conversation=turns, boxes=boxes)


def boxes_in(size: tuple[int, int], count: int, least: int = 0) -> Iterator[Box]:
    draw = random.Random(f"{size}")
    for _ in range(count):
        left, top = (draw.randrange(length - least) for length in size)
        yield Box(
            left,
            top,
            draw.randint(least, size[0] - 1 - left),
            draw.randint(least, size[1] - 1 - top),
        )


def of_image(batch: MultimodalBatch, segment: Segment, row: int = 0) -> Tensor:
    return batch.spans[segment][row][batch.spans[Segment.IMAGE][row]]
