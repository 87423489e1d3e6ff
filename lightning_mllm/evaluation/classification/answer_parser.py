"""From free text to a class: what a generated answer is taken to mean."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from lightning_mllm.errors import DataError
from lightning_mllm.evaluation.classification.negation import MARK, MARKS, UNCLEAR, denies, mentions

INVALID = -1  # the answer names no class, or more than one, or what it says is not clear

_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
_LETTER = r"[^\W\u0e00-\u0eff\u2e80-\u9fff\uac00-\ud7af]"  # but for Thai, Lao, Chinese, Japanese and Korean
_BLANK = re.compile(r"[\s_]+")


def normalise(text: str) -> str:
    """Fold away what does not change the meaning: case, outer quotes, a full stop, spacing, Unicode form."""
    text = _BLANK.sub(" ", unicodedata.normalize("NFC", text).casefold())
    return text.lstrip(_QUOTES + " ").rstrip(_QUOTES + " .")


class AnswerParser:
    """Maps an answer to the one class that it names.

    An answer that equals a class name (both normalised) is that class. Otherwise the class names are looked for in the
    answer, the longest first; found text is taken away, so that "leaf spot" does not count as "leaf" too. They are
    looked for as whole words ("none" does not name "one"), in scripts without blanks as any part of the text. Exactly
    one class found is the answer; none or several are `INVALID`, never a guess. What the answer denies (see
    `negation.py`) is not found: "not benign but malignant" is "malignant", and "not benign" is invalid, also where
    there are two classes. So is an answer that is only a part of a class name ("spot" for "leaf spot").

    Args:
        names: Class names; the index of a name is its class.

    Raises:
        DataError: Two names are equal once normalised, or a name has nothing left.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._classes: dict[str, int] = {}
        for index, name in enumerate(names):
            key = normalise(name)
            if not key:
                raise DataError(f"Class {index} is named {name!r}: nothing is left of it to look for. Rename it.")
            if key in self._classes:
                raise DataError(
                    f"The class names {names[self._classes[key]]!r} and {name!r} differ only in case, quotes or "
                    "spacing, so no answer could tell them apart. Rename or merge one of them."
                )
            self._classes[key] = index
        longest_first = sorted(self._classes, key=len, reverse=True)
        self._patterns = [
            (re.compile(rf"(?<!{_LETTER}){re.escape(key)}(?!{_LETTER})"), chr(MARKS[self._classes[key]]))
            for key in longest_first
        ]
        self._denying = frozenset(chr(MARKS[index]) for key, index in self._classes.items() if denies(key))

    def parse(self, text: str) -> int:
        """Return the class of an answer, or `INVALID`."""
        answer = normalise(text)
        if answer in self._classes:
            return self._classes[answer]
        answer = MARK.sub(" ", answer)
        for pattern, mark in self._patterns:
            answer = pattern.sub(mark, answer)
        counts = [*mentions(answer, self._denying)]
        named = {mark for mark, negations in counts if not negations}
        denied = {mark for mark, negations in counts if negations}
        if len(named) != 1 or named & denied or max(negations for _, negations in counts) >= UNCLEAR:
            return INVALID
        return MARKS.index(ord(named.pop()))
