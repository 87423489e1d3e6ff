"""What a run prints, on a terminal or to a file."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console

from lightning_mllm import progress

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@contextmanager
def captured_screen(*, is_terminal: bool, width: int = 80) -> Iterator[io.StringIO]:
    """Give the package another console while the block runs; what is printed is in the result."""
    written = io.StringIO()
    console = Console(
        file=written, force_terminal=is_terminal, width=width, highlight=False, color_system=None
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "console", console)
        patch.setattr(progress._DISPLAY.live, "console", console)
        yield written


def printed_lines(written: io.StringIO) -> list[str]:
    """Return all lines that were ever on the screen, those of bars included."""
    text = CONTROL.sub("", written.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]
