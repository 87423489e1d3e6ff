"""Where in a picture each visual token's patch is, for figures."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from PIL import Image

from lightning_mllm.data.images.files import find_image_size
from lightning_mllm.data.images.views import View, count_class_tokens, find_views
from lightning_mllm.types import Sample


@dataclass(frozen=True)
class PatchPlace:
    """What a visual token shows of a picture, in pixels of the stored picture.

    Parts of it are outside of the picture where that was padded.

    Attributes:
        left: Left edge.
        top: Upper edge.
        right: Right edge.
        bottom: Lower edge.
        in_tile: Whether it is in a tile, not in the view of the whole picture.
    """

    left: float
    top: float
    right: float
    bottom: float
    in_tile: bool


def find_patch_places(sample: Sample, collator: Any, count: int) -> list[PatchPlace | None] | None:
    """Return the place of each patch of a sample's one picture, None for a class token.

    Args:
        sample: The sample.
        collator: The `Collator` that makes its batches.
        count: How many visual tokens the picture has, separators left out.

    Returns:
        The places, in the order of the tokens; None if it is not known what they show, or the
        sample has not one picture.
    """
    if len(sample.images) != 1:
        return None
    size = find_image_size(sample.images[0])
    views = find_views(size, collator.geometry, collator.processor)
    places: list[PatchPlace | None] = []
    for view in views or ():
        places += _list_places(view)
    ahead = count - len(places)
    if not places or ahead not in (0, count_class_tokens(collator.processor)):
        return None
    return [None] * ahead + places


class PatchFinder:
    """Finds the pictures of samples, and where their patches are.

    Args:
        data: The DataModule, set up.
        split: The split of the samples.
    """

    def __init__(self, data: Any, split: str) -> None:
        self._data, self._split = data, split
        self._places: dict[str, int] = {}  # id -> index in the split, once one is asked for

    def find(
        self, sample_id: str, count: int
    ) -> tuple[Image.Image, list[PatchPlace | None]] | None:
        """Return a sample's picture, and the places of its patches, as `find_patch_places` does.

        Args:
            sample_id: Id of the sample.
            count: How many visual tokens its picture has, separators left out.
        """
        samples = self._data.samples[self._split]
        if not self._places:
            self._places = {sample.id: index for index, sample in enumerate(samples)}
        sample = samples[self._places[sample_id]]
        places = find_patch_places(sample, self._data.eval_collator, count)
        return None if places is None else (self._data.picture(sample), places)


def _list_places(view: View) -> list[PatchPlace]:
    """Return the places of a view's patches, row after row."""
    across, down = view.across, view.down
    places = []
    for row, column in product(view.rows, view.columns):
        x = [(each - across.shift) / across.scale for each in (column, column + view.patch)]
        y = [(each - down.shift) / down.scale for each in (row, row + view.patch)]
        left, top, right, bottom = (float(each) for each in (x[0], y[0], x[1], y[1]))
        places.append(PatchPlace(left, top, right, bottom, view.place is not None))
    return places
