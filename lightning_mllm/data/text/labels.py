"""Class names as the prompt shows them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from lightning_mllm.errors import DataError

_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"


def normalise_label(name: str) -> str:
    """Turn underscores into spaces, so that words stay words.

    `Bell_pepper leaf` becomes `Bell pepper leaf`. Letters with marks are composed (NFC), as folder
    names from some file systems are not.
    """
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").split())


def collect_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted class names of raw labels.

    Raises:
        DataError: A name is empty, or two can't be told apart in an answer.
    """
    seen: dict[str, str] = {}
    for label in sorted(set(labels)):
        name = fold_label(normalise_label(label))
        if not name:
            raise DataError(
                f"The class name {label!r} is empty once underscores, quotes, full stops and "
                "blanks are removed. Rename it."
            )
        other = seen.setdefault(name, label)
        if other != label:
            raise DataError(
                f"The class names {other!r} and {label!r} are the same but for case, underscores "
                "and blanks, quotes around them or a full stop after them, so answers could not "
                "be told apart. Merge them or rename one."
            )
    return tuple(sorted(normalise_label(label) for label in seen.values()))


def fold_label(name: str) -> str:
    """Remove what an answer's score does not depend on, as evaluation's answer parser does."""
    return name.casefold().lstrip(_QUOTES + " ").rstrip(_QUOTES + " .")
