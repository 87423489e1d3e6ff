"""Which visual tokens are about what: objects, their surroundings, padding, and the parts of LLaVA-NeXT's sequence."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from fractions import Fraction
from math import isfinite

import torch
from torch import Tensor
from transformers import ProcessorMixin

from lightning_mllm.data.images.geometry import Geometry
from lightning_mllm.data.images.views import View, views
from lightning_mllm.errors import DataError
from lightning_mllm.store.seeds import python_random
from lightning_mllm.types import Box, Sample, Segment

Size = tuple[int, int]  # width and height

_KEPT = 1024  # sizes of pictures whose layout is kept
_ABOUT_BOXES = (Segment.IMAGE_OBJECT, Segment.IMAGE_OTHER, Segment.IMAGE_RANDOM, Segment.IMAGE_DISTRACTOR)
_ABOUT_THE_PICTURE = (Segment.IMAGE_PADDING, Segment.IMAGE_NEWLINE, Segment.IMAGE_BASE, Segment.IMAGE_TILES)


class _Layout:
    """What a picture's tokens stand for; `views` is empty where that can't be told.

    Attributes:
        views: Grids of patches, in the order of their tokens.
        ahead: Tokens in front of them that are no patches: the class token, where the model keeps it.
        masks: Segment -> mask of shape (tokens,), of what does not depend on boxes.
    """

    def __init__(self, found: tuple[View, ...] | None, count: int, class_tokens: int) -> None:
        parts = [view.padding() for view in found or ()]
        self.ahead = count - sum(map(len, parts))
        self.views = found or ()
        if self.ahead not in (0, class_tokens):  # of another family
            self.views, self.ahead, parts = (), count, []
        blank = torch.zeros(self.ahead, dtype=torch.bool)
        tiles = torch.arange(count) >= self.ahead + len(parts[0]) if parts else torch.zeros(count, dtype=torch.bool)
        self.masks: Mapping[Segment, Tensor] = {
            Segment.IMAGE_PADDING: torch.cat([blank, *parts]),
            Segment.IMAGE_NEWLINE: torch.cat([blank, *(view.separators() for view in self.views)]),
            Segment.IMAGE_BASE: ~tiles,
            Segment.IMAGE_TILES: tiles,
        }

    def shows(self, boxes: Sequence[Box], size: Size) -> Tensor:
        """Return which tokens show a part of any of the boxes."""
        shown = torch.zeros(self.ahead + sum(map(len, self.views)), dtype=torch.bool)
        for box in boxes:
            parts = [view.shows(*_edges(box, size)) for view in self.views]
            shown |= torch.cat([torch.zeros(self.ahead, dtype=torch.bool), *parts])
        return shown

    def control(self, shown: Tensor, draw: random.Random) -> Tensor:
        """Draw as many patches of each view as are shown; `Regions.masks` says which."""
        parts = [torch.zeros(self.ahead, dtype=torch.bool)]
        lengths = [len(view) for view in self.views]
        for view, own in zip(self.views, shown[self.ahead :].split(lengths), strict=True):
            padding = view.padding()
            others = ~(own | padding | view.separators())
            parts.append(_drawn((others, padding, own), int(own.sum()), draw))
        return torch.cat(parts)


class Regions:
    """Finds the regions of pictures for one checkpoint and geometry.

    A patch belongs to an object if it shows any part of one of the sample's boxes. Corners are inclusive, as in the
    study of information flow: a box of width w takes w + 1 columns of pixels, so one that lies in the picture has a
    patch. One beyond the picture's edge, or where it is cropped away, has none.

    Args:
        processor: The checkpoint's.
        geometry: How pictures are made square.
    """

    def __init__(self, processor: ProcessorMixin, geometry: Geometry) -> None:
        self._processor, self._geometry = processor, geometry
        keeps_class = getattr(processor, "vision_feature_select_strategy", "") == "full"
        self._class_tokens: int = processor.num_additional_image_tokens if keeps_class else 0  # type: ignore[attr-defined]
        self._layouts: dict[tuple[Size, int], _Layout] = {}

    def masks(self, sample: Sample, sizes: Sequence[Size], counts: Sequence[int]) -> dict[Segment, Tensor]:
        """Return segment -> mask over the visual tokens of all of a sample's images.

        IMAGE_RANDOM is drawn by the sample's id alone: in each view (LLaVA-NeXT's whole picture, its tiles) as many
        patches as IMAGE_OBJECT has there, of those that show something else. Where the object leaves too few of them,
        padding fills up, and then patches of the object itself: IMAGE_RANDOM & IMAGE_OBJECT is what could not be kept
        apart. Separators and a class token are never among them.

        IMAGE_DISTRACTOR, drawn likewise, shows as many of the distractors as there are boxes, or all of them if they
            are fewer; patches that show a part of a box are not among them.

        Args:
            sample: The sample.
            sizes: Of its pictures, before anything is done to them.
            counts: Visual tokens of each of them.

        Raises:
            DataError: It has boxes but not exactly one image, or its family's patches can't be told.
        """
        check_boxes(sample)
        layouts = [self._layout(size, count) for size, count in zip(sizes, counts, strict=True)]
        none = torch.zeros(0, dtype=torch.bool)
        found = {name: torch.cat([none, *(each.masks[name] for each in layouts)]) for name in _ABOUT_THE_PICTURE}
        found |= {name: torch.zeros(sum(counts), dtype=torch.bool) for name in _ABOUT_BOXES}
        if sample.boxes:
            shown = self.shown(sample, sizes[0], counts[0])
            found[Segment.IMAGE_OBJECT], found[Segment.IMAGE_OTHER] = shown, ~(shown | found[Segment.IMAGE_NEWLINE])
            draw = python_random("random patches", sample.id)
            found[Segment.IMAGE_RANDOM] = layouts[0].control(shown, draw)
            draw = python_random("distractors", sample.id)
            chosen = draw.sample(sample.distractors, min(len(sample.boxes), len(sample.distractors)))
            found[Segment.IMAGE_DISTRACTOR] = layouts[0].shows(chosen, sizes[0]) & ~shown
        return found

    def shown(self, sample: Sample, size: Size, count: int) -> Tensor:
        """Return which of the visual tokens of a sample's one picture show a part of its boxes.

        Raises:
            DataError: Its family's patches can't be told.
        """
        layout = self._layout(size, count)
        if not layout.views:
            raise DataError(
                f"Sample {sample.id!r} has boxes, but which patches show them is known for LLaVA-1.5 and LLaVA-NeXT "
                f"alone, not for {type(self._processor).__name__}. Leave the boxes out, or use a checkpoint of these "
                "families."
            )
        return layout.shows(sample.boxes, size)

    def _layout(self, size: Size, count: int) -> _Layout:
        if (size, count) not in self._layouts:
            if len(self._layouts) >= _KEPT:
                self._layouts.clear()
            found = views(size, self._geometry, self._processor)
            self._layouts[size, count] = _Layout(found, count, self._class_tokens)
        return self._layouts[size, count]


def check_boxes(sample: Sample) -> None:
    """Refuse boxes that can't be placed.

    Raises:
        DataError: There are some, and not exactly one image; or one has a negative side.
    """
    if sample.boxes and len(sample.images) != 1:
        raise DataError(
            f"Sample {sample.id!r} has boxes and {len(sample.images)} images, so which picture they are in can't be "
            "told. Give it one image, or no boxes.",
            "boxes",
        )
    for box in (*sample.boxes, *sample.distractors):
        if not all(map(isfinite, astuple(box))) or min(box.width, box.height) < 0:
            raise DataError(
                f"Sample {sample.id!r} has the box {astuple(box)}: left, top, width and height must be numbers, and "
                "the last two at least 0. Correct it.",
                "boxes",
            )


def _edges(box: Box, size: Size) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """Return left, top, right and bottom of what a box takes of a picture; left is right or more if it is beyond it."""
    left, top = max(Fraction(box.left), Fraction(0)), max(Fraction(box.top), Fraction(0))
    right, bottom = Fraction(box.left) + Fraction(box.width) + 1, Fraction(box.top) + Fraction(box.height) + 1
    return left, top, min(right, Fraction(size[0])), min(bottom, Fraction(size[1]))


def _drawn(pools: Sequence[Tensor], count: int, draw: random.Random) -> Tensor:
    """Return a mask of `count` places: of the first pool as far as it has so many, then of the next."""
    drawn = torch.zeros_like(pools[0])
    for pool in pools:
        places: list[int] = pool.nonzero().flatten().tolist()
        taken = draw.sample(places, min(count, len(places)))
        drawn[taken] = True
        count -= len(taken)
    return drawn
