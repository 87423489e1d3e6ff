"""CIDEr-D: how much a caption says what several people say of the same picture.

Vedantam et al. (CVPR 2015, arXiv 1411.5726), section 4 and the variant D of section 6. Captions are
sets of n-grams, n from 1 to 4. An n-gram's weight is how often a caption has it, times the
logarithm of the number of pictures over that of the pictures whose references have it. What all
pictures share weighs nothing. Per n and reference,

    similarity = exp(-(difference of lengths)^2 / 2 sigma^2) * (min(c, r) . r) / (|c| |r|)

with sigma 6 and at most the reference's weight for each n-gram. A caption's score is 10 times the
mean over n and references, as in the released code: from 0 to 10; papers often report 100 times
this number. A caption's score depends on the references of all pictures, which weigh the words.

Words are runs of letters, digits and hyphens in lower case, without punctuation. The released code
splits words in Java, by rules that differ for a few ("cannot", "don't").
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.errors import DataError
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.statistics.picture_bootstrap import (
    Bootstrap,
    bootstrap_estimate,
    bootstrap_mean,
)
from lightning_mllm.store.seeds import seed_rank_of

_LONGEST = 4  # words in an n-gram
_SIGMA = 6.0  # words
_SCALE = 10.0
_WORD = re.compile(r"'?\w+(?:-\w+)*")

_Grams = Counter[tuple[str, ...]]


@dataclass(frozen=True)
class CiderResult:
    """Scores of captions.

    Attributes:
        scores: (captions,), CIDEr-D of each.
        shuffled: (captions,), of each with the references of another picture, as a control.
        pictures: (captions,), what each is about.
    """

    scores: Floats
    shuffled: Floats
    pictures: NDArray[Any]

    def summary(self) -> dict[str, Any]:
        """Return means with intervals over pictures, ready for JSON."""
        found: dict[str, Any] = {"n": len(self.scores)}
        draws = Bootstrap().draw(self.pictures)
        for name, scores in (("cider_d", self.scores), ("cider_d_shuffled", self.shuffled)):
            column = scores[:, None]
            value, low, high, _ = bootstrap_estimate(bootstrap_mean(column), column, draws)[0]
            found |= {name: float(value), f"{name}_interval_95": [float(low), float(high)]}
        return found


def score_captions(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]], pictures: Sequence[str]
) -> CiderResult:
    """Score captions by their own references, and by those of others.

    Args:
        captions: Sample id -> caption.
        references: Sample id -> the captions of people.
        pictures: What each caption is about, in the order of the captions.

    The control is over pictures: a caption is held against what people said of another picture,
    also where a picture has several captions.

    Raises:
        DataError: There are fewer than two pictures.
    """
    circle = sorted({*pictures}, key=lambda name: seed_rank_of(name, 0))
    following = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    said: dict[str, Sequence[str]] = {}
    for name, picture in zip(captions, pictures, strict=True):
        said.setdefault(picture, references[name])
    texts, others = list(captions.values()), [following[picture] for picture in pictures]
    own = cider_d(texts, [references[name] for name in captions], pictures)
    shuffled = cider_d(texts, [said[other] for other in others], others)
    return CiderResult(own, shuffled, np.array(pictures))


def cider_d(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    pictures: Sequence[str] | None = None,
) -> Floats:
    """Return the score of each caption, (captions,), from 0 to 10.

    Args:
        captions: Captions.
        references: The references of each, one or more.
        pictures: What each is about, so that the words said of a picture count once; without, each
            is about a picture of its own.

    Raises:
        DataError: There are fewer than two pictures, so that nothing tells which words are rare.
    """
    names: Sequence[str | int] = range(len(captions)) if pictures is None else pictures
    if len({*names}) < 2:
        raise DataError(
            f"CIDEr-D weighs words by how few pictures they are said of, and there are "
            f"{len({*names})} pictures. Score the captions of two or more."
        )
    counted = [[_count_grams(text) for text in texts] for texts in references]
    said: dict[str | int, set[tuple[str, ...]]] = {}
    for name, grams in zip(names, counted, strict=True):
        said.setdefault(name, set()).update(*grams)
    said_of = Counter[tuple[str, ...]]()
    for of_picture in said.values():
        said_of.update(of_picture)
    log_pictures = math.log(len(said))

    def weigh(grams: _Grams) -> _Weighted:
        return _Weighted.of(grams, said_of, log_pictures)

    scores = np.zeros(len(captions))
    for number, (caption, grams) in enumerate(zip(captions, counted, strict=True)):
        own = weigh(_count_grams(caption))
        scores[number] = np.mean([own.compare(weigh(reference)) for reference in grams])
    return _SCALE * scores


def read_references(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Read a JSON object: sample id -> list of captions by people.

    Raises:
        DataError: The file is missing, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"The references {path} can't be read: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object from sample ids to lists of captions.")
    for name, texts in content.items():
        are_texts = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        if not are_texts or not texts:
            raise DataError(f"{path}: sample {name!r} needs a list of captions, one or more.")
    return {name: tuple(texts) for name, texts in content.items()}


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def _count_grams(text: str) -> _Grams:
    """Return how often a text has each n-gram."""
    words, counts = split_words(text), _Grams()
    for length in range(1, _LONGEST + 1):
        counts.update(zip(*(words[start:] for start in range(length)), strict=False))
    return counts


@dataclass(frozen=True)
class _Weighted:
    """The n-grams of a caption.

    Attributes:
        weights: n-gram -> weight.
        norms: (longest n-gram,), the length of the vector of each n.
        pairs: How many n-grams of two words there are: the number of words, less one.
    """

    weights: Mapping[tuple[str, ...], float]
    norms: Floats
    pairs: int

    @classmethod
    def of(cls, grams: _Grams, said_of: _Grams, pictures: float) -> _Weighted:
        """Weigh the n-grams of a caption.

        Args:
            grams: How often it has each.
            said_of: Number of pictures of which each is said.
            pictures: Logarithm of the number of pictures.
        """
        weights: dict[tuple[str, ...], float] = {}
        squares, pairs = np.zeros(_LONGEST), 0
        for gram, count in grams.items():
            weights[gram] = count * (pictures - math.log(max(1, said_of[gram])))
            squares[len(gram) - 1] += weights[gram] ** 2
            pairs += count if len(gram) == 2 else 0
        return cls(weights, np.sqrt(squares), pairs)

    def compare(self, reference: _Weighted) -> float:
        """Return the similarity to a reference, the mean over n, from 0 to 1."""
        products = np.zeros(_LONGEST)
        for gram, weight in self.weights.items():
            theirs = reference.weights.get(gram, 0.0)
            products[len(gram) - 1] += min(weight, theirs) * theirs
        sizes = self.norms * reference.norms
        cosines = np.divide(products, sizes, out=np.zeros(_LONGEST), where=sizes > 0)
        penalty = math.exp(-((self.pairs - reference.pairs) ** 2) / (2 * _SIGMA**2))
        return float(penalty * cosines.mean())
