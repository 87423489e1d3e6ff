"""The sheet of predictions: images with their prompts, true classes and all scorers' answers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from lightning_mllm.tracking.figures.figure import save_figure, shorten_figure_text
from lightning_mllm.tracking.figures.guard import guard_figure
from lightning_mllm.tracking.figures.style import GREY, PALETTE

_RIGHT, _WRONG = PALETTE[2], PALETTE[5]
_TILE, _GAP = 2.5, 0.25  # inches: side of an image, and the space between two
_COLUMNS = 4


@dataclass(frozen=True)
class PredictedAnswer:
    """What one scorer says about a sample.

    Attributes:
        scorer: Name of the scorer.
        answer: The answer.
        predicted: The class that the answer names; empty if it names none.
        correct: Whether that is right; None if it is not known.
        log_probability: That of the class as the answer; None if the scorer does not compute it.
    """

    scorer: str
    answer: str
    predicted: str
    correct: bool | None
    log_probability: float | None = None


@dataclass(frozen=True)
class PredictionCaption:
    """The text below an image of a prediction sheet."""

    prompt: str
    target: str
    answers: Sequence[PredictedAnswer]


@guard_figure
def draw_predictions(
    images: Sequence[Image.Image],
    captions: Sequence[PredictionCaption],
    output: Path,
    title: str = "",
) -> Path:
    """Draw a grid of images with their captions.

    Args:
        images: The images.
        captions: One caption per image.
        output: The file to write.
        title: The title above the grid.

    Returns:
        `output`.
    """
    columns = min(_COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    below = 0.7 + 0.18 * max(len(caption.answers) for caption in captions)  # inches for a caption
    width, height = columns * (_TILE + _GAP) + _GAP, rows * (_TILE + below) + 0.5
    figure = Figure(figsize=(width, height))
    figure.text(0.5, 1 - 0.25 / height, title, ha="center", va="center", fontsize=12)
    for index, (picture, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, columns)
        left = _GAP + column * (_TILE + _GAP)
        bottom = (rows - 1 - row) * (_TILE + below) + below
        axis = figure.add_axes((left / width, bottom / height, _TILE / width, _TILE / height))
        axis.set_axis_off()
        side = max(picture.size)
        axis.imshow(ImageOps.pad(picture.convert("RGB"), (side, side), color="white"))
        _write_caption(axis, caption)
    return save_figure(figure, output)


def _write_caption(axis: Axes, caption: PredictionCaption) -> None:
    prompt = textwrap.fill(shorten_figure_text(caption.prompt, 84), 44)
    written = [
        (prompt, GREY, 6.5),
        (f"true: {shorten_figure_text(caption.target, 34)}", "black", 9.0),
    ]
    for each in caption.answers:
        sign, colour = ("\u2713", _RIGHT) if each.correct else ("\u2717", _WRONG)
        answer = shorten_figure_text(each.answer, 24) or "(empty)"
        written.append((f"{sign} {each.scorer}: {answer}", colour, 9.0))
    offset = -4.0
    for text, colour, size in written:
        axis.annotate(
            text,
            xy=(0, 0),
            xycoords="axes fraction",
            xytext=(0, offset),
            textcoords="offset points",
            va="top",
            color=colour,
            fontsize=size,
            parse_math=False,
        )
        offset -= 1.35 * size * (1 + text.count("\n"))
