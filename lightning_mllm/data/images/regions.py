"""Which visual tokens show what: objects, their surroundings, padding, whole picture and tiles."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from fractions import Fraction
from math import isfinite

import torch
from torch import Tensor

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.geometry import Geometry, Size
from lightning_mllm.data.images.views import View, count_class_tokens, find_views
from lightning_mllm.errors import DataError
from lightning_mllm.families import FAMILIES
from lightning_mllm.store.seeds import python_random
from lightning_mllm.types import Box, Sample, Segment

_FAR = 0.1  # of a side of the picture; published boxes reach a pixel or two out of it
_KEPT = 1024  # sizes of pictures whose layout is kept
_ABOUT_BOXES = (
    Segment.IMAGE_OBJECT,
    Segment.IMAGE_OTHER,
    Segment.IMAGE_RANDOM,
    Segment.IMAGE_DISTRACTOR,
    Segment.IMAGE_DISTRACTORS,
)
_ABOUT_THE_PICTURE = (
    Segment.IMAGE_PADDING,
    Segment.IMAGE_NEWLINE,
    Segment.IMAGE_BASE,
    Segment.IMAGE_TILES,
)


class _Layout:
    """What a picture's tokens show; `views` is empty where that is not known.

    Attributes:
        views: Grids of patches, in the order of their tokens.
        ahead: How many tokens before them are not patches: the class token, if the model keeps it.
        masks: Segment -> mask of shape (tokens,), for segments that do not depend on boxes.
    """

    def __init__(self, views: tuple[View, ...] | None, count: int, class_tokens: int) -> None:
        self.views = views or ()
        self.ahead = count - sum(map(len, self.views))
        if self.ahead not in (0, class_tokens):  # of another family
            self.views, self.ahead = (), count
        tiles = self._join(
            [torch.full((len(view),), view.place is not None) for view in self.views]
        )
        self.masks: Mapping[Segment, Tensor] = {
            Segment.IMAGE_PADDING: self._join([view.find_padding() for view in self.views]),
            Segment.IMAGE_NEWLINE: self._join([view.find_separators() for view in self.views]),
            Segment.IMAGE_BASE: ~tiles,
            Segment.IMAGE_TILES: tiles,
        }

    def find_shown(self, boxes: Sequence[Box], size: Size) -> Tensor:
        """Return which tokens show a part of any of the boxes."""
        shown = torch.zeros(self.ahead + sum(map(len, self.views)), dtype=torch.bool)
        for box in boxes:
            edges = _find_edges(box, size)
            shown |= self._join([view.find_shown(*edges) for view in self.views])
        return shown

    def draw_control(self, shown: Tensor, draw: random.Random) -> Tensor:
        """Draw as many patches of each view as are shown; `Regions.find_masks` says which."""
        parts = []
        lengths = [len(view) for view in self.views]
        for view, own in zip(self.views, shown[self.ahead :].split(lengths), strict=True):
            padding = view.find_padding()
            others = ~(own | padding | view.find_separators())
            parts.append(_draw_places((others, padding, own), int(own.sum()), draw))
        return self._join(parts)

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return one mask of a mask per view, False at the tokens before them."""
        return torch.cat([torch.zeros(self.ahead, dtype=torch.bool), *parts])


class Regions:
    """Finds the regions of pictures for one checkpoint and geometry.

    A patch is what one visual token shows of a picture: a patch of the tower, or several of them
    where the family merges or pools them. It belongs to an object if it shows any part of one of
    the sample's boxes. That is exact where a processor does not resample the picture. Where it
    does, the filter also spreads a box's colours over the pixels next to it; patches that show
    nothing of the box but that are not in the object. Where OneVision shrinks a large map of tiles,
    the patches of a token are those that it is interpolated from. What GOT-OCR2's convolutions
    take from the patches around a token's own is not counted. Corners are
    inclusive, as in the study of information flow: a box of width w takes w + 1 columns of pixels,
    so one inside the picture has a patch. A box outside the picture, or where it is cropped away,
    has none.

    Args:
        processor: The processor of the checkpoint.
        geometry: How pictures are made square.
    """

    def __init__(self, processor: CheckpointProcessor, geometry: Geometry) -> None:
        self._processor, self._geometry = processor, geometry
        self._class_tokens = count_class_tokens(processor)
        self._layouts: dict[tuple[Size, int], _Layout] = {}

    def find_masks(
        self, sample: Sample, sizes: Sequence[Size], counts: Sequence[int]
    ) -> dict[Segment, Tensor]:
        """Return segment -> mask over the visual tokens of all of a sample's images.

        IMAGE_RANDOM is drawn by the sample's id alone: in each view (the whole picture, a tile; the
        tiles of LLaVA-NeXT are one view) as many patches as IMAGE_OBJECT has there, among those
        that show something else. Where the object leaves too few of them, padding fills up, and
        then patches of the object itself: IMAGE_RANDOM & IMAGE_OBJECT is what could not be kept
        apart. Separators and a class token are never drawn.

        IMAGE_DISTRACTOR, drawn in the same way, shows as many distractors as there are boxes, or
        all of them if they are fewer; patches that show a part of a box are not in it.
        IMAGE_DISTRACTORS shows all of them, whatever else its patches show.

        Args:
            sample: The sample whose pictures are looked at.
            sizes: The sizes of its pictures, before anything is done to them.
            counts: How many visual tokens each picture has.

        Raises:
            DataError: It has boxes but not exactly one image, or it is not known which patches
                show what for its family.
        """
        check_region_boxes(sample)
        layouts = []
        for size, count in zip(sizes, counts, strict=True):
            layouts.append(self._find_layout(size, count))
        none = torch.zeros(0, dtype=torch.bool)
        found = {}
        for segment in _ABOUT_THE_PICTURE:
            found[segment] = torch.cat([none, *(layout.masks[segment] for layout in layouts)])
        for segment in _ABOUT_BOXES:
            found[segment] = torch.zeros(sum(counts), dtype=torch.bool)
        if sample.boxes:
            found |= self._find_masks_of_boxes(sample, sizes[0], counts[0])
        return found

    def _find_masks_of_boxes(self, sample: Sample, size: Size, count: int) -> dict[Segment, Tensor]:
        """Return the masks that depend on boxes, for the sample's one picture."""
        layout = self._find_layout(size, count)
        shown = self.find_shown(sample, size, count)
        random_draw = python_random("random patches", sample.id)
        control = layout.draw_control(shown, random_draw)
        distractor_draw = python_random("distractors", sample.id)
        number = min(len(sample.boxes), len(sample.distractors))
        chosen = distractor_draw.sample(sample.distractors, number)
        return {
            Segment.IMAGE_OBJECT: shown,
            Segment.IMAGE_OTHER: ~(shown | layout.masks[Segment.IMAGE_NEWLINE]),
            Segment.IMAGE_RANDOM: control,
            Segment.IMAGE_DISTRACTOR: layout.find_shown(chosen, size) & ~shown,
            Segment.IMAGE_DISTRACTORS: layout.find_shown(sample.distractors, size),
        }

    def find_shown(self, sample: Sample, size: Size, count: int) -> Tensor:
        """Return which of the visual tokens of a sample's one picture show a part of its boxes.

        Raises:
            DataError: It is not known which patches show what for its family.
        """
        layout = self._find_layout(size, count)
        if not layout.views:
            known = ", ".join(sorted(name for name in FAMILIES if FAMILIES[name].grid))
            raise DataError(
                f"Sample {sample.id!r} has boxes, but which patches show them is only known for "
                f"{known}, not for this {type(self._processor.hf).__name__}. Leave the boxes out, "
                "or use a checkpoint of these families."
            )
        return layout.find_shown(sample.boxes, size)

    def _find_layout(self, size: Size, count: int) -> _Layout:
        """Return the layout of a picture of a size, as a rule a known one."""
        if (size, count) not in self._layouts:
            if len(self._layouts) >= _KEPT:
                self._layouts.clear()
            views = find_views(size, self._geometry, self._processor)
            self._layouts[size, count] = _Layout(views, count, self._class_tokens)
        return self._layouts[size, count]


def check_region_boxes(sample: Sample) -> None:
    """Refuse boxes that can't be placed.

    Raises:
        DataError: There are some, and not exactly one image; or one is not a box, or has a
            negative side.
    """
    if sample.boxes and len(sample.images) != 1:
        raise DataError(
            f"Sample {sample.id!r} has boxes and {len(sample.images)} images, so it can't be told "
            "which picture they are in. Give it one image, or no boxes.",
            "boxes",
        )
    for box in (*sample.boxes, *sample.distractors):
        if not isinstance(box, Box):
            raise DataError(
                f"Sample {sample.id!r} has the box {box!r}. Expected lightning_mllm.Box(left, top, "
                "width, height), in pixels of the stored picture.",
                "boxes",
            )
        if not all(map(isfinite, astuple(box))) or min(box.width, box.height) < 0:
            raise DataError(
                f"Sample {sample.id!r} has the box {astuple(box)}: left, top, width and height "
                "must be numbers, and the last two at least 0. Correct it.",
                "boxes",
            )


def region_leaves_picture(boxes: Iterable[Box], size: Size) -> bool:
    """Return whether a box reaches far out of its picture, by a tenth of a side or more.

    Such boxes are often in the pixels of a picture of another size.
    """
    width, height = size
    for box in boxes:
        across = max(-box.left, box.left + box.width - width)
        down = max(-box.top, box.top + box.height - height)
        if across >= _FAR * width or down >= _FAR * height:
            return True
    return False


def _find_edges(box: Box, size: Size) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """Return left, top, right and bottom of what a box takes of a picture.

    Left is at least right if the box is outside the picture.
    """
    width, height = size
    left, top = Fraction(box.left), Fraction(box.top)
    right = left + Fraction(box.width) + 1
    bottom = top + Fraction(box.height) + 1
    right, bottom = min(right, Fraction(width)), min(bottom, Fraction(height))
    return max(left, Fraction(0)), max(top, Fraction(0)), right, bottom


def _draw_places(pools: Sequence[Tensor], count: int, draw: random.Random) -> Tensor:
    """Return a mask of `count` places, drawn from the first pool, then from the next if need be."""
    drawn = torch.zeros_like(pools[0])
    for pool in pools:
        places: list[int] = pool.nonzero().flatten().tolist()
        taken = draw.sample(places, min(count, len(places)))
        drawn[taken] = True
        count -= len(taken)
    return drawn
