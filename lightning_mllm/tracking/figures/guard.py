"""A figure that can't be drawn ends no run."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

Arguments = ParamSpec("Arguments")

logger = logging.getLogger(__name__)


def guard_figure(draw: Callable[Arguments, Path]) -> Callable[Arguments, Path]:
    """Make a function that draws a figure log a warning instead of raising an error.

    The numbers of a figure are in CSV files anyway, and a run is worth more than a picture.

    Args:
        draw: Writes the file `output` and returns its path. If it raises, there is no such file.
    """
    signature = inspect.signature(draw)

    @wraps(draw)
    def attempt(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Path:
        try:
            return draw(*args, **kwargs)
        except Exception as error:  # NaN, infinity and missing numbers raise all kinds of errors
            output: Path = signature.bind(*args, **kwargs).arguments["output"]
            for path in (output, output.with_suffix(".png")):
                path.unlink(missing_ok=True)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            logger.warning(
                "The figure %s can't be drawn (%s); its numbers are in the CSV files.",
                output,
                reason,
            )
            return output

    return attempt
