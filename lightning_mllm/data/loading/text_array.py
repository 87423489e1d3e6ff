"""Many texts in two arrays, which take no more memory than their characters."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, compress
from typing import overload

import numpy as np
from numpy.typing import NDArray

_ERRORS = "surrogatepass"  # names of files need not be UTF-8


class TextArrayBuilder:
    """Takes in texts one by one."""

    def __init__(self) -> None:
        self._content, self._ends = bytearray(), array("q")

    def append(self, text: str) -> None:
        """Take in the next text."""
        self._content += text.encode("utf-8", _ERRORS)
        self._ends.append(len(self._content))

    def __len__(self) -> int:
        """Return how many texts were taken in."""
        return len(self._ends)

    def build(self) -> TextArray:
        """Return the texts; afterwards no more can be taken in."""
        return TextArray(
            np.frombuffer(self._content, np.uint8), np.frombuffer(self._ends, np.int64)
        )


class TextArray(Sequence[str]):
    """Texts that are kept as bytes: a million of them are two arrays, not a million objects.

    Worker processes share the arrays; Python's own objects are copied as soon as they are counted.

    Args:
        content: The bytes of all texts.
        ends: Where each text ends in the content.
    """

    def __init__(self, content: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.content, self.ends = content, ends
        self._bytes: memoryview = content.data

    @classmethod
    def of(cls, texts: Iterable[str]) -> TextArray:
        """Keep texts, which may come one by one."""
        builder = TextArrayBuilder()
        for text in texts:
            builder.append(text)
        return builder.build()

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


def unique_texts(*arrays: Sequence[str]) -> tuple[TextArray, list[NDArray[np.int64]]]:
    """Return the different texts of some arrays in the order of their first places.

    Texts are told apart by hashes of 64 bits.

    Returns:
        The texts, and per array the number of each of its texts among them.
    """
    total = sum(map(len, arrays))
    hashes = np.fromiter(map(hash, chain.from_iterable(arrays)), np.int64, total)
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    places = np.sort(first)
    ranks = np.empty(len(first), np.int64)
    ranks[np.argsort(first)] = np.arange(len(first))
    is_first = np.zeros(total, bool)
    is_first[places] = True
    (only, *others) = arrays or ((),)
    if len(places) == total and isinstance(only, TextArray) and not others:
        texts = only
    else:
        texts = TextArray.of(compress(chain.from_iterable(arrays), is_first))
    bounds = np.cumsum(list(map(len, arrays)))[:-1]
    parts = np.split(ranks[inverse.reshape(-1)], bounds)
    return texts, parts[: len(arrays)]
