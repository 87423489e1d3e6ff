"""Writes down the samples of which there are maps: pictures, where patches lie, what is asked.

Analyses write numbers for each visual token of some samples (`store.sample_maps`). They see token
ids and pixels only; the picture as people see it, the grid of its patches and the question are
known here, so the run's folder `pictures` gets them once for all analyses of a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from lightning_mllm.data.images.files import open_image_file
from lightning_mllm.data.images.geometry import Size
from lightning_mllm.data.images.patch_edges import describe_patch_edges
from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.store.files import write_bytes, write_json
from lightning_mllm.store.sample_maps import (
    digest_sample_id,
    find_pictures_folder,
    list_map_samples,
)
from lightning_mllm.types import Box, Sample

_LONGER_SIDE = 384  # pixels at most
_QUALITY = 80  # of WebP
_LOSSLESS = 128  # pixels: of pictures that are not larger every pixel is kept


def write_shown_samples(collator: Collator, samples: Iterable[Sample], folder: Path) -> int:
    """Write pictures, grids and questions of the samples that analyses have written maps of.

    Args:
        collator: Made the batches.
        samples: All that were analysed.
        folder: Holds the folders of the analyses, `<run>/analysis/<pass>`.

    Returns:
        How many samples there are.
    """
    missing = list_map_samples(folder)
    count = len(missing)
    for sample in samples if missing else ():
        if (tokens := missing.pop(sample.id, None)) is not None:
            _write(collator, sample, tokens, find_pictures_folder(folder))
        if not missing:
            break
    return count - len(missing)


def _write(collator: Collator, sample: Sample, tokens: int, folder: Path) -> None:
    name = digest_sample_id(sample.id)
    pictures: list[dict[str, Any]] = []
    sizes: list[Size] = []
    for number, image in enumerate(sample.images):
        opened = open_image_file(image, f"Image {number + 1} of sample {sample.id!r}")
        sizes.append(opened.size)
        file = f"{name}-{number}.webp"
        write_bytes(folder / file, _encode(opened))
        own = collator.find_image_text(opened.size).features
        edges = describe_patch_edges(opened.size, own, collator.geometry, collator.processor)
        pictures.append({"file": file, "size": opened.size, "tokens": own, **edges})
    while sum(each["tokens"] for each in pictures) > tokens and len(pictures) > 1:
        pictures.pop(0)  # with the first exchange, which did not fit
    dialogue = collator.prompt.dialogue(sample, collator.label_names, epoch=0)
    asked = [turn for turn in dialogue.turns if turn.role == "user"]
    write_json(
        folder / f"{name}.json",
        {
            "sample_id": sample.id,
            "kind": sample.kind or "",
            "question": " ".join((asked[-1].text, asked[-1].instruction)).strip() if asked else "",
            "reference": dialogue.turns[-1].text,
            "pictures": pictures,
            "boxes": _share_boxes(sample.boxes, sizes),
            "distractors": _share_boxes(sample.distractors, sizes),
        },
    )


def _encode(picture: Image.Image) -> bytes:
    """Return a small copy as WebP."""
    small = picture.copy()
    small.thumbnail((_LONGER_SIDE, _LONGER_SIDE))
    stream = BytesIO()
    lossless = max(picture.size) <= _LOSSLESS
    small.save(stream, "WEBP", quality=_QUALITY, lossless=lossless, method=6)
    return stream.getvalue()


def _share_boxes(boxes: Sequence[Box], sizes: Sequence[Size]) -> list[list[float]]:
    """Return left, top, right and bottom as shares of the picture; boxes are in the only one."""
    shares = []
    for box in boxes:
        width, height = sizes[0]
        right, bottom = box.left + box.width + 1, box.top + box.height + 1  # as in `regions`
        shares.append([box.left / width, box.top / height, right / width, bottom / height])
    return shares
