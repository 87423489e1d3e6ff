"""Many texts in two arrays, which take no more memory than their characters."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

_ERRORS = "surrogatepass"  # names of files need not be UTF-8


class TextArray(Sequence[str]):
    """Texts that are kept as bytes: a million of them are two arrays, not a million objects.

    Worker processes share the arrays; Python's own objects are copied as soon as they are counted.

    Args:
        content: The bytes of all texts.
        ends: Where each text ends in the content.
    """

    def __init__(self, content: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.content, self.ends = content, ends
        self._bytes = memoryview(content)

    @classmethod
    def of(cls, texts: Iterable[str]) -> TextArray:
        """Keep texts, which may come one by one."""
        content, ends = bytearray(), array("q")
        for text in texts:
            content += text.encode("utf-8", _ERRORS)
            ends.append(len(content))
        return cls(np.frombuffer(content, np.uint8), np.frombuffer(ends, np.int64))

    def __len__(self) -> int:
        """Return how many texts there are."""
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> TextArray: ...
    def __getitem__(self, index: int | slice) -> str | TextArray:
        """Return a text, or some of them."""
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return str(self._read(range(len(self))[index]), "utf-8", _ERRORS)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> TextArray:
        """Return the texts of some indices, in their order."""
        content, ends = bytearray(), array("q")
        for index in map(int, indices):
            content += self._read(index)
            ends.append(len(content))
        return TextArray(np.frombuffer(content, np.uint8), np.frombuffer(ends, np.int64))

    def _read(self, index: int) -> memoryview:
        start = self.ends[index - 1] if index else 0
        return self._bytes[start : self.ends[index]]

    def __reduce__(self) -> tuple[type[TextArray], tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Let other processes have it, without the view."""
        return TextArray, (self.content, self.ends)
