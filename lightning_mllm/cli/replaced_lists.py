"""What is lost where a config, or the command line, sets a list that an earlier config has set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args, get_origin

from jsonargparse import Namespace


def takes_replaced_lists(hint: Any) -> bool:
    """Return whether an option of this type may be a list."""
    return any(get_origin(part) in (list, Sequence) for part in (hint, *get_args(hint)))


def dropped_by_replaced_list(before: list[Any], now: list[Any]) -> list[Any]:
    """Return the items of a list that another one lacks; numbers and `${...}` do not count."""
    gone = []
    for item in before:
        counts = not isinstance(item, int | float) and "${" not in str(item)
        if counts and not any(_replaces(other, item) for other in now):
            gone.append(item)
    return gone


def _replaces(other: Any, item: Any) -> bool:
    """Return whether an item equals another one, or has its class, whatever their options."""
    if not isinstance(item, Namespace | dict) or not isinstance(other, Namespace | dict):
        return bool(item == other)
    keys = ["class_path"] if "class_path" in item else item.keys()
    return all(other.get(key) == item[key] for key in keys)


def name_in_replaced_list(item: Any) -> str:
    """Return what a message calls an item: the short name of its class, or its text."""
    if not isinstance(item, Namespace | dict):
        return str(item)
    if "class_path" in item:
        return str(item["class_path"]).rpartition(".")[2]
    options = ", ".join(f"{key}: {value}" for key, value in item.items())
    return f"{{{options}}}"
