"""Words on the patches of a picture, coloured by a number each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from lightning_mllm.analysis.core.result import AnalysisResult, PatchPicture
from lightning_mllm.tracking.figures import FigureKind
from lightning_mllm.tracking.figures.figure import (
    MEDIUM,
    save_figure,
    shorten_figure_text,
    title_figure,
)
from lightning_mllm.tracking.figures.guard import guard_figure

_CELL = 0.62  # inches: side of the smallest patch
_MOST, _LEAST = 24.0, 5.0  # inches: longer side of a picture
_POINTS = 7.5  # of a word
_LETTERS = 9  # of a word that is drawn whole
_COLOURS = "viridis"
_OPACITY = 0.45

# id of a sample and its number of patches -> its picture, and the place of each patch
FindPatches = Callable[[str, int], tuple[Image.Image, Sequence[Any]] | None]

logger = logging.getLogger(__name__)


class DrawnPatch(NamedTuple):
    """A patch of a picture.

    Attributes:
        edges: Left, top, right and bottom, in pixels of the picture.
        in_tile: Whether it is in a tile, not in the view of the whole picture.
        word: What is written on it.
        value: What colours it.
    """

    edges: tuple[float, float, float, float]
    in_tile: bool
    word: str
    value: float


def draw_patch_pictures(
    result: AnalysisResult, folder: Path, find: FindPatches | None, figures: FigureKind = "png"
) -> list[Path]:
    """Draw the words of patches on pictures of samples, each as `<name>.<figures>`.

    Args:
        result: The result, with its pictures.
        folder: Folder of the files.
        find: Finds the pictures; None draws nothing.
        figures: Kind of file; there is a PNG in any case.

    Returns:
        The files that there are.
    """
    if find is None:
        return []
    paths = []
    for about in result.pictures:
        found = find(about.sample_id, len(about.words))
        if found is None:
            logger.warning(
                "%s can't be drawn on the picture of sample %r: it is not known which part each "
                "visual token of this model shows, or the sample has several pictures. The words "
                "are in rows.csv.",
                about.name,
                about.sample_id,
            )
            continue
        patches = []
        for place, word, value in zip(found[1], about.words, about.values, strict=True):
            if place is not None:
                edges = (place.left, place.top, place.right, place.bottom)
                patches.append(DrawnPatch(edges, place.in_tile, word, value))
        output = folder / f"{about.name}.{figures}"
        paths.append(draw_patch_picture(found[0], patches, about, output))
    return [path for path in paths if path.is_file()]


@guard_figure
def draw_patch_picture(
    picture: Image.Image, patches: Sequence[DrawnPatch], about: PatchPicture, output: Path
) -> Path:
    """Draw a picture, and beside it its patches with their words; tiles have a panel of their own.

    Args:
        picture: The picture as it is stored.
        patches: The patches of the picture, one or more.
        about: Title and label of the figure.
        output: The file to write.

    Returns:
        `output`.
    """
    views = [[each for each in patches if each.in_tile == tiles] for tiles in (False, True)]
    views = [view for view in views if view]
    sizes = [_choose_size(view) for view in views]
    plain = min(sizes[0][0], 4.0)
    widths = [plain, *(width for width, _ in sizes)]
    height = max(each for _, each in sizes)
    figure = Figure(figsize=(sum(widths) + 1.6, height + 1.0), layout="constrained")
    axes = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    values = [each.value for each in patches]
    norm = Normalize(float(np.min(values)), float(np.max(values)))
    for axis in axes:
        axis.set_axis_off()
        axis.imshow(picture, interpolation="nearest", extent=(0, picture.width, picture.height, 0))
    colours = ScalarMappable(norm, _COLOURS)
    for axis, view in zip(axes[1:], views, strict=True):
        _draw_view(axis, view, colours)
    bar = figure.colorbar(colours, ax=axes[-1], shrink=0.8, pad=0.01)
    bar.set_label(about.label, fontsize=MEDIUM)
    title_figure(figure, shorten_figure_text(about.title, 120))
    return save_figure(figure, output)


def _choose_size(view: Sequence[DrawnPatch]) -> tuple[float, float]:
    """Return width and height of a view in inches, so that words fit its patches."""
    edges = np.array([each.edges for each in view])
    across, down = np.ptp(edges[:, [0, 2]]), np.ptp(edges[:, [1, 3]])
    smallest = (edges[:, 2] - edges[:, 0]).min()
    longer = max(across, down)
    inches = float(np.clip(longer / smallest * _CELL, _LEAST, _MOST))
    return inches * float(across / longer), inches * float(down / longer)


def _draw_view(axis: Axes, view: Sequence[DrawnPatch], colours: Any) -> None:
    edges = np.array([each.edges for each in view])
    axis.set_xlim(edges[:, 0].min(), edges[:, 2].max())
    axis.set_ylim(edges[:, 3].max(), edges[:, 1].min())
    for each in view:
        left, top, right, bottom = each.edges
        colour = colours.to_rgba(each.value)
        axis.add_patch(
            Rectangle(
                (left, top),
                right - left,
                bottom - top,
                facecolor=(*colour[:3], _OPACITY),
                edgecolor="white",
                linewidth=0.3,
            )
        )
        axis.text(
            (left + right) / 2,
            (top + bottom) / 2,
            shorten_figure_text(each.word, _LETTERS),
            ha="center",
            va="center",
            fontsize=_POINTS,
            color="white",
            path_effects=[withStroke(linewidth=1.6, foreground="black")],
            parse_math=False,
        )
