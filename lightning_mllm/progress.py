"""How far a command is: bars on a terminal, a line in the log now and then elsewhere.

All bars of a process are in one display, so that an evaluation inside a training, or probes inside
an evaluation, have theirs below each other. Only the first process of a run shows any.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

T = TypeVar("T")

console = Console(highlight=False)  # prints above the bars, to what is stdout at that time
_LINE_EVERY = 60.0  # seconds between two lines where there are no bars
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # set in the processes that Lightning starts

logger = logging.getLogger(__name__)


class ProgressBar:
    """Counts the finished part of some work; made by `show_progress`.

    Args:
        name: What is being done.
        total: How much there is to do, in any unit.
        done: How much of it was done before.
    """

    def __init__(self, name: str, total: float | None, done: float = 0) -> None:
        self.name, self.total, self.done, self._first = name, total, done, done
        self._started = self._advanced = time.monotonic()
        self._due = self._started + _LINE_EVERY
        self._task = _DISPLAY.add_task(name, total=total, bar=self)
        _DISPLAY.update(self._task, completed=done)

    def advance(self, amount: float = 1) -> None:
        """Count more work as finished."""
        self.done += amount
        self._advanced = now = time.monotonic()
        _DISPLAY.advance(self._task, amount)
        if now >= self._due and not console.is_terminal and is_first_process():
            self._due = now + _LINE_EVERY
            counted = f"{self.done:g}" if self.total is None else f"{self.done:g}/{self.total:g}"
            left = self.describe_time_left()
            logger.info("%s: %s%s", self.name, counted, f" · {left}" if left else "")

    def rename(self, name: str) -> None:
        """Say what is being done now."""
        self.name = name
        _DISPLAY.update(self._task, description=name)

    def close(self) -> None:
        """Take the bar away."""
        _DISPLAY.remove_task(self._task)

    def describe_time_left(self) -> str:
        """Return the time that is left by the mean speed so far; nothing if it is not known."""
        done = self.done - self._first
        if self.total is None or not done or self.done >= self.total:
            return ""
        each = (self._advanced - self._started) / done
        waited = min(time.monotonic() - self._advanced, each)  # for the part that is being done
        left = max(0.0, each * (self.total - self.done) - waited)
        return f"{format_duration(left)} left"


@contextmanager
def show_progress(name: str, total: float | None = None, done: float = 0) -> Iterator[ProgressBar]:
    """Show a bar while the block runs.

    Args:
        name: What is being done, in a few words.
        total: How much there is to do; None if that is not known.
        done: How much of it was done before, and says nothing of the speed.
    """
    bar = ProgressBar(name, total, done)
    if console.is_terminal and is_first_process():
        _DISPLAY.start()
    try:
        yield bar
    finally:
        bar.close()
        if not _DISPLAY.tasks and _DISPLAY.live.is_started:
            _DISPLAY.stop()


def track(items: Iterable[T], name: str, total: float | None = None) -> Iterator[T]:
    """Yield items and show how many are done.

    Args:
        items: What is worked through.
        name: What is being done, in a few words.
        total: The number of items, where `items` has no length.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if total == 0:  # a bar of nothing says nothing
        yield from items
        return
    with show_progress(name, total) as bar:
        for item in items:
            yield item
            bar.advance()


def format_duration(seconds: float) -> str:
    """Return a time in the unit that a person would use, e.g. `12 s`, `3 min` or `1 h 20 min`."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class _TimeLeft(ProgressColumn):
    """The time that is left."""

    def render(self, task: Task) -> Text:
        """Return the time, or nothing as long as it is not known."""
        bar: ProgressBar = task.fields["bar"]
        return Text(bar.describe_time_left())


def is_first_process() -> bool:
    """Return whether this is the first process of a run, which alone shows anything."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


_DISPLAY = Progress(
    TextColumn("{task.description}", markup=False),
    BarColumn(bar_width=24),
    MofNCompleteColumn(),
    _TimeLeft(),
    console=console,
    transient=True,
)
