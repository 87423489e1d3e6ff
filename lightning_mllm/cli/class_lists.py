"""`--classes` of `ask` and `predict`: names side by side, or a list in brackets."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

CLASSES = "--classes"


def split_class_lists(arguments: Sequence[str]) -> list[str]:
    """Return arguments with `--classes '[circle, square]'` as `--classes circle square`."""
    split: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option == CLASSES and equals:
            split += [CLASSES, *_names_in(value)]
        elif split and _is_list(argument) and _last_option(split) == CLASSES:
            split += _names_in(argument)
        else:
            split.append(argument)
    return split


def _last_option(arguments: Sequence[str]) -> str:
    return next((each for each in reversed(arguments) if each.startswith("--")), "")


def _is_list(value: str) -> bool:
    return value.startswith("[") and value.endswith("]")


def _names_in(value: str) -> list[str]:
    """Return the names of a list in brackets; of anything else the text itself."""
    if not _is_list(value):
        return [value]
    try:
        names = yaml.load(value, yaml.BaseLoader)  # texts only: 1, no and null are names
    except yaml.YAMLError:
        return [value]
    return [str(name) for name in names]
