"""Reads a class from free text: how generated answers are interpreted."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from lightning_mllm.errors import DataError
from lightning_mllm.evaluation.classification.negation import (
    MARK,
    MARKS,
    UNCLEAR,
    has_negation,
    negated_mentions,
)

INVALID = -1  # the answer names no class, or several, or is unclear

_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
# without those of Thai, Lao, Chinese, Japanese and Korean
_LETTER = r"[^\W\u0e00-\u0eff\u2e80-\u9fff\uac00-\ud7af]"
_BLANK = re.compile(r"[\s_]+")


def normalise(text: str) -> str:
    """Remove differences of case, outer quotes, a full stop, spacing and Unicode form."""
    text = _BLANK.sub(" ", unicodedata.normalize("NFC", text).casefold())
    return text.lstrip(_QUOTES + " ").rstrip(_QUOTES + " .")


class AnswerParser:
    """Maps an answer to the one class that it names.

    An answer that equals a class name (both normalised) is that class. Otherwise the class names
    are searched for in the answer, the longest first; found text is removed, so that "leaf spot"
    does not count as "leaf" too. They are searched for as whole words ("none" does not name "one"),
    in scripts without blanks as any part of the text. If exactly one class is found, it is the
    answer; none or several are `INVALID`, never a guess.

    What the answer denies (see `negation.py`) is not found: "not benign but malignant" is
    "malignant", and "not benign" is invalid, also where there are two classes. An answer that is
    only a part of a class name is invalid too ("spot" for "leaf spot").

    Args:
        names: Class names; the index of a name is its class.

    Raises:
        DataError: Two names are equal when normalised, or a name is empty.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._classes: dict[str, int] = {}
        for index, name in enumerate(names):
            key = normalise(name)
            if not key:
                raise DataError(
                    f"Class {index} is named {name!r}: nothing is left of it to look for. Rename "
                    "it."
                )
            if key in self._classes:
                raise DataError(
                    f"The class names {names[self._classes[key]]!r} and {name!r} differ only in "
                    "case, quotes or spacing, so no answer could tell them apart. Rename or merge "
                    "one of them."
                )
            self._classes[key] = index
        longest_first = sorted(self._classes, key=len, reverse=True)
        self._marks: list[tuple[re.Pattern[str], str]] = []  # what is replaced by which mark
        denying: set[str] = set()
        for key in longest_first:
            pattern = re.compile(rf"(?<!{_LETTER}){re.escape(key)}(?!{_LETTER})")
            mark = chr(MARKS[self._classes[key]])
            self._marks.append((pattern, mark))
            if has_negation(key):
                denying.add(mark)
        self._denying = frozenset(denying)

    def parse(self, text: str) -> int:
        """Return the class of an answer, or `INVALID`."""
        answer = normalise(text)
        if answer in self._classes:
            return self._classes[answer]
        answer = MARK.sub(" ", answer)
        for pattern, mark in self._marks:
            answer = pattern.sub(mark, answer)
        named: set[str] = set()
        denied: set[str] = set()
        for mark, negations in negated_mentions(answer, self._denying):
            if negations >= UNCLEAR:
                return INVALID
            (denied if negations else named).add(mark)
        if len(named) != 1 or named & denied:
            return INVALID
        return MARKS.index(ord(named.pop()))
