"""Maps of a sample as few bytes: levels instead of numbers, one dictionary of words, deflate.

The packed bytes are a length (4 bytes, little-endian), a header in JSON, and the codes. A number
becomes one of a few levels between the lowest and the highest of its layer, so that what is read
back is off by half a level at most; the header says the ends. Words are places in a dictionary
that all samples share, the low bytes of all places before the high bytes, which compresses better.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.store.sample_maps import SampleMaps, ValueMap, WordMap

MISSING = 255  # code of a number that is not there
_NO_WORD = 0  # place of the empty word in the dictionary
_DIGITS = 9  # of the ends of a layer, as many as float32 has


@dataclass(frozen=True)
class PackingDetail:
    """How much of the maps is kept.

    Attributes:
        levels: Between the lowest and the highest number of a layer; 255 at most.
        value_layers: Most layers of a map of numbers; None for all.
        word_layers: Most layers of a map of words; None for all.
        samples: Most samples; None for all.
    """

    levels: int = 255
    value_layers: int | None = None
    word_layers: int | None = None
    samples: int | None = None


class WordDictionary:
    """All words that occur, each once."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {"": _NO_WORD}

    @property
    def words(self) -> list[str]:
        """The words, in the order of their places."""
        return [*self._places]

    def find_places(self, words: Sequence[str]) -> NDArray[np.int64]:
        """Return the place of each word; a new one gets the next."""
        places = [self._places.setdefault(word, len(self._places)) for word in words]
        return np.array([*places, _NO_WORD])  # the last is what -1 stands for


def pack_sample_maps(maps: SampleMaps, detail: PackingDetail, dictionary: WordDictionary) -> str:
    """Return the maps of a sample as base64 of raw deflate."""
    body = bytearray()
    header: dict[str, Any] = {"values": {}, "words": {}, "sets": {}}
    for name, numbers in maps.values.items():
        kept = choose_layers(numbers.layers, detail.value_layers)
        header["values"][name] = _pack_values(body, _take_values(numbers, kept), detail.levels)
    for name, words in maps.words.items():
        kept = choose_layers(words.layers, detail.word_layers)
        header["words"][name] = _pack_words(body, words, kept, detail.levels, dictionary)
    for name, inside in maps.sets.items():
        header["sets"][name] = np.flatnonzero(inside).tolist()
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    return deflate_to_base64(struct.pack("<I", len(text)) + text + bytes(body))


def choose_layers(layers: Sequence[int], most: int | None) -> list[int]:
    """Return the places of the layers that are kept: first, last, and evenly between them."""
    if most is None or len(layers) <= most:
        return [*range(len(layers))]
    places = np.linspace(0, len(layers) - 1, most).round().astype(int)
    return [int(place) for place in np.unique(places)]


def deflate_to_base64(content: bytes) -> str:
    """Return what a browser's `DecompressionStream("deflate-raw")` opens, as base64."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9)
    return base64.b64encode(packer.compress(content) + packer.flush()).decode()


def _take_values(numbers: ValueMap, kept: Sequence[int]) -> ValueMap:
    if not numbers.layers:
        return numbers
    return ValueMap(
        numbers.values[[*kept]], tuple(numbers.layers[place] for place in kept), numbers.label
    )


def _pack_values(body: bytearray, numbers: ValueMap, levels: int) -> dict[str, Any]:
    """Append the codes of numbers, and return what the header says of them."""
    codes, ends = quantise_layers(numbers.values, levels)
    about = {"layers": numbers.layers, "at": len(body), "levels": levels, **ends}
    body += codes.tobytes()
    return about


def _pack_words(
    body: bytearray,
    words: WordMap,
    kept: Sequence[int],
    levels: int,
    dictionary: WordDictionary,
) -> dict[str, Any]:
    """Append places in the dictionary and codes of scores, and return what the header says."""
    places = dictionary.find_places(words.words)[words.ids[[*kept]]]
    codes, ends = quantise_layers(words.scores[[*kept]], levels)
    about = {
        "layers": [words.layers[place] for place in kept],
        "k": words.ids.shape[2],
        "at": len(body),
        "levels": levels,
        "bytes": 3 if places.max(initial=0) > np.iinfo(np.uint16).max else 2,
        **ends,
    }
    # rank by rank, so that equal bytes stand together
    ranked = np.moveaxis(places, 2, 1).ravel()
    for byte in range(about["bytes"]):
        body += (ranked >> 8 * byte & 0xFF).astype(np.uint8).tobytes()
    body += np.moveaxis(codes, 2, 1).tobytes()
    return about


def quantise_layers(
    values: NDArray[np.floating[Any]], levels: int
) -> tuple[NDArray[np.uint8], dict[str, list[float]]]:
    """Return numbers as levels between the ends of their layer.

    Args:
        values: (layers, ...), NaN where there is none.
        levels: How many; 255 at most.

    Returns:
        Codes of the same shape, and `low` and `high`, (layers,): code c stands for
        low + c * (high - low) / (levels - 1).
    """
    there = np.isfinite(values)
    axes = tuple(range(1, values.ndim))
    low = np.where(there, values, np.inf).min(axes, initial=np.inf)
    high = np.where(there, values, -np.inf).max(axes, initial=-np.inf)
    low, high = (np.where(np.isfinite(each), each, 0.0).astype(float) for each in (low, high))
    low, high = (
        np.array([float(f"{number:.{_DIGITS}g}") for number in ends]) for ends in (low, high)
    )
    shape = (-1, *[1] * len(axes))
    step = np.maximum((high - low) / (levels - 1), np.finfo(np.float64).tiny).reshape(shape)
    shares = np.where(there, (values - low.reshape(shape)) / step, 0).round()
    codes = np.where(there, shares.clip(0, levels - 1), MISSING).astype(np.uint8)
    return codes, {"low": low.tolist(), "high": high.tolist()}
