"""Where the visual tokens of a picture lie on it, for whoever draws on it."""

from __future__ import annotations

from typing import Any

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.geometry import Geometry, Size
from lightning_mllm.data.images.views import View, count_class_tokens, find_views
from lightning_mllm.data.images.views.axis import Axis

_DIGITS = 5  # of a share of the picture's width: no screen shows more


def describe_patch_edges(
    size: Size, tokens: int, geometry: Geometry, processor: CheckpointProcessor
) -> dict[str, Any]:
    """Return which part of a picture each of its visual tokens shows, as plain data.

    Args:
        size: The picture's width and height, before anything is done to it.
        tokens: How many visual tokens it has.
        geometry: How pictures are made square.
        processor: The processor of the checkpoint.

    Returns:
        `ahead`, how many tokens before the first grid show no part of it, and `views`: per grid
        `across` and `down`, the begin and end of each column and row as shares of the picture's
        width and height (padding is below 0 or above 1), whether a `newline` ends each row, and
        `whole`, whether it shows the picture and not tiles of it. No views where it is not known.
    """
    views = find_views(size, geometry, processor) or ()
    ahead = tokens - sum(map(len, views))
    if ahead not in (0, count_class_tokens(processor)):  # tokens of another family
        return {"ahead": tokens, "views": []}
    return {"ahead": ahead, "views": [_describe_view(view, size) for view in views]}


def _describe_view(view: View, size: Size) -> dict[str, Any]:
    width, height = size
    return {
        "across": _find_edges(view.across, view.columns, view.patch, width),
        "down": _find_edges(view.down, view.rows, view.patch, height),
        "newline": view.newline,
        "whole": view.place is None,
    }


def _find_edges(
    axis: Axis, starts: tuple[int, ...], patch: int, length: int
) -> list[tuple[float, float]]:
    """Return where patches begin and end on the original, as shares of its length."""
    edges = []
    for start in starts:
        first, last = ((at - axis.shift) / axis.scale / length for at in (start, start + patch))
        edges.append((round(float(first), _DIGITS), round(float(last), _DIGITS)))
    return edges
