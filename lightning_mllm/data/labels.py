"""Class names as the prompt shows them."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_mllm.errors import DataError


def normalise_label(name: str) -> str:
    """Turn underscores into spaces, so that words stay words: `Bell_pepper leaf` -> `Bell pepper leaf`."""
    return " ".join(name.replace("_", " ").split())


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted class names behind raw labels.

    Raises:
        DataError: A name is empty, or two differ only by case, underscores or whitespace.
    """
    seen: dict[str, str] = {}
    for label in sorted(set(labels)):
        name = normalise_label(label)
        if not name:
            raise DataError(f"The class name {label!r} is empty once underscores and blanks are removed. Rename it.")
        other = seen.setdefault(name.casefold(), label)
        if other != label:
            raise DataError(
                f"The class names {other!r} and {label!r} are the same but for case, underscores and blanks, so "
                "answers could not be told apart. Merge them or rename one."
            )
    return tuple(sorted(normalise_label(label) for label in seen.values()))
