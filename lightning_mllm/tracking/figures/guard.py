"""Lets no figure end a run."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

Arguments = ParamSpec("Arguments")

log = logging.getLogger(__name__)


def spares_the_run(draw: Callable[Arguments, Path]) -> Callable[Arguments, Path]:
    """Let a figure that can't be drawn be a line of warning: its numbers are in CSV files, and a run is worth more.

    Args:
        draw: Writes the file `output` and returns it; if it can't, there is none.
    """
    signature = inspect.signature(draw)

    @wraps(draw)
    def attempt(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Path:
        try:
            return draw(*args, **kwargs)
        except Exception as error:  # whatever comes of NaN, of infinity, or of nothing at all
            output: Path = signature.bind(*args, **kwargs).arguments["output"]
            output.unlink(missing_ok=True)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            log.warning(
                "The figure %s can't be drawn (%s); its numbers are in the CSV files.",
                output,
                reason,
            )
            return output

    return attempt
