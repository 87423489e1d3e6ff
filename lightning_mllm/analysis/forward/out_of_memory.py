"""How to continue with less at a time when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

_PATIENCE = 16  # pieces that fit before more at a time is tried again
_T = TypeVar("_T")
_Thing = TypeVar("_Thing")


class MemoryPieces:
    """Runs things some at a time; out of memory, it continues with half as many.

    After a while it tries more again.

    Attributes:
        name: What the things are called in the log.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._limit: int | None = None  # in weights
        self._patience, self._fitted = _PATIENCE, 0

    def run(
        self,
        things: Sequence[_Thing],
        size: int,
        function: Callable[[Sequence[_Thing]], _T],
        *,
        weight: int = 1,
        halve: bool = True,
    ) -> list[_T]:
        """Return function(piece) for consecutive pieces of `size` or fewer things.

        Args:
            things: What is run.
            size: How many are run at a time, if memory allows.
            function: Runs a piece.
            weight: How much memory a thing takes, in any unit; things of another call may take more
                or less.
            halve: Whether a piece that does not fit is run in halves; otherwise the error goes to
                the caller.

        Raises:
            torch.OutOfMemoryError: One thing alone does not fit, or `halve` is False.
        """
        results: list[_T] = []
        start = 0
        while start < len(things):
            fitting = size if self._limit is None else max(1, self._limit // weight)
            piece = things[start : start + min(size, fitting)]
            try:
                results.append(function(piece))
                start += len(piece)
                self._note_that_it_fits()
                continue
            except torch.OutOfMemoryError:
                if len(piece) == 1 or not halve:
                    raise
            # here and not above, where the error would keep alive what was allocated
            self._limit, self._fitted = len(piece) // 2 * weight, 0
            self._patience *= 2
            torch.cuda.empty_cache()
            logger.warning(
                "Out of memory with %d %s at a time; going on with %d.",
                len(piece),
                self.name,
                len(piece) // 2,
            )
        return results

    def _note_that_it_fits(self) -> None:
        self._fitted += 1
        if self._limit is not None and self._fitted >= self._patience:
            self._limit, self._fitted = 2 * self._limit, 0
