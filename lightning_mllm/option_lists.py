"""Options that take one value or a list of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def trainer_option_as_list(value: Any) -> list[Any]:
    """Return a sequence as a list, one thing as a list of it, and None as an empty list."""
    if value is None:
        return []
    if isinstance(value, Sequence) and not isinstance(value, str | Mapping):
        return list(value)
    return [value]
