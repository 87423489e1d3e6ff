"""The rows of `PatchWords`: what the patches of a sample say at a layer, counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

ANY = "own words"  # the measure for which a word of the whole vocabulary counts
MANY = ("patch_words", "patch_values")  # columns that are long, and that no summary reads
_TOP = 10  # words of a sample that are counted one by one


@dataclass(frozen=True, kw_only=True)
class PatchWordsRow:
    """A sample, lens, layer and measure; a sample without an image has one row, without a layer.

    Attributes:
        sample_id: Id of the sample.
        picture: Name of the picture that it is about.
        label: Class of the sample; empty without one.
        lens: `logit lens` or `bank`.
        layer: Number of layers that the states have gone through.
        measure: `own words`, for the likeliest word of all, or an attribute, for the likeliest of
            its values.
        own: The words that count as the sample's own, as a JSON list.
        patches: Number of patches that show the sample's boxes and no other object; of all patches
            where it has no boxes.
        said: How many of these say each word that is any sample's own, as a JSON object.
        free: Number of patches of the picture that show no object; 0 without boxes.
        said_free: How many of these say each word that is any sample's own, as a JSON object.
        top: The words that most of its patches say, and how many do, as a JSON object.
        patch_words: The likeliest or nearest word of every patch of the image, as a JSON list.
        patch_values: Probability or cosine of each of `patch_words`, as a JSON list.
    """

    sample_id: str
    picture: str
    label: str
    lens: str = ""
    layer: int = -1
    measure: str = ""
    own: str = ""
    patches: int = 0
    said: str = ""
    free: int = 0
    said_free: str = ""
    top: str = ""
    patch_words: str = ""
    patch_values: str = ""


def count_patch_words(words: Iterable[str], counted: Collection[str]) -> str:
    """Return how often each of the counted words is said, as a JSON object."""
    return _write_counts(Counter(word for word in words if word in counted))


def write_top_patch_words(words: Iterable[str]) -> str:
    """Return the most frequent words and how often they are said, as a JSON object."""
    return _write_counts(dict(Counter(words).most_common(_TOP)))


def write_patch_list(cells: Sequence[str] | Tensor) -> str:
    """Return words, or numbers with three decimals, as a JSON list."""
    if isinstance(cells, Tensor):
        return json.dumps([round(float(value), 3) for value in cells.tolist()])
    return json.dumps(list(cells), ensure_ascii=False)


def _write_counts(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return json.dumps(dict(ordered), ensure_ascii=False)
