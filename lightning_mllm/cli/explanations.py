"""Turns jsonargparse's long messages into a sentence that says what was expected."""

from __future__ import annotations

import inspect
import pydoc
import re
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from typing import Any

from lightning_mllm.cli.class_index import BASES, explain_class, subclass_names
from lightning_mllm.errors import did_you_mean


def explain(message: str, program: str, known: Collection[str]) -> str:
    """Return a sentence or two, with the nearest right name; or the message as it is.

    Args:
        message: What jsonargparse says.
        program: What was typed up to the command, e.g. `lightning fit`.
        known: The options that there are.
    """
    field = r"class_path '[\w.]*?(\w+)':\s+unrecognized arguments: --([\w.]+).*(\n\s+Did you.*)?"
    if match := re.search(field, message):  # a dataclass among the options of a class
        return f"{match[1]} has no option {match[2]!r}.\n{(match[3] or '').strip()}".strip()
    if match := re.search(
        r"(?:unrecognized arguments: --|does not accept option ')([\w.]+)", message
    ):
        return message + did_you_mean(match[1], set(known) - {match[1]})
    if match := re.search(r"\S+ has no option .*\n\s*Did you mean .*\?", message):
        return re.sub(r"\n\s+", "\n", match[0])  # a class in a class: it has a hint already
    if match := re.search(r"the following arguments are required: (.+)", message):
        names = [
            name.removeprefix(f"{program.rsplit(maxsplit=1)[-1]}.") for name in match[1].split(", ")
        ]
        return f"`{program}` needs {' and '.join(names)}."
    return _explain_class(message) or _explain_value(message) or message


def _explain_class(message: str) -> str | None:
    """Return a sentence about a class that is not there, or is not of the right kind."""
    key = _key(message)
    if match := re.search(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message):
        hint = did_you_mean(match[2], _options(match[1]))
        return f"{match[1]} has no option {match[2]!r}.{hint}"
    if match := re.search(r"Expected a dot import path string: (\w+)$", message, re.MULTILINE):
        if key in BASES:
            return explain_class(key, match[1])
        if shape := _describe_fields(message):
            return f"{key} takes {shape}, not {match[1]!r}."
        names: set[str] = set().union(*(subclass_names(base) for base, _, _ in BASES.values()))
        return f"There is no class {match[1]!r}.{did_you_mean(match[1], names)}"
    if match := re.search(r"Expected an instantiatable class, but (\S+) is abstract", message):
        below: list[type] = getattr(pydoc.locate(match[1]), "__subclasses__", list)()
        listed = ", ".join(sorted(each.__name__ for each in below))
        return f"{key} takes the name of a class before its options: {listed}."
    return _explain_own_class(message, key)


def _describe_fields(message: str) -> str | None:
    """Return the fields of the dataclass that is expected, as a config has them."""
    for name in re.findall(r"<class '([\w.]+)'>", message):
        kind: Any = pydoc.locate(name)
        if is_dataclass(kind):
            return f"{{{', '.join(f'{field.name}: ...' for field in fields(kind))}}}"
    return None


def _explain_own_class(message: str, key: str) -> str | None:
    """Return a sentence about a class that is named with its module."""
    problem = r"given class_path '([\w.]+)':\s+"
    absent = r"expects a function .*: module '(\S+)' has no attribute '(\w+)'"
    if match := re.search(absent, message):
        hint = did_you_mean(match[2], dir(pydoc.locate(match[1])))
        return f"{key}: the module {match[1]} has no class {match[2]!r}.{hint}"
    if match := re.search(problem + r"module '(\S+)' has no attribute '(\w+)'", message):
        return f"{key}: the module {match[2]} has no class {match[3]!r}."
    if match := re.search(
        r"Import path does not correspond to a subclass of (\w+)[\s\S]*Given value: (.+)", message
    ):
        kinds = {base: kind for base, kind, _ in BASES.values()}
        return (
            f"{key} takes a {kinds.get(match[1], match[1])}, and {match[2]} is none ({match[1]})."
        )
    if match := re.search(problem + r"(\w+ takes .*(?:\n.*Did you mean.*)?)", message):
        return f"{key}.init_args.{match[2]}"
    if match := re.search(problem + r"(?!\s|Parser key|Option|Problem)(.+)", message):
        return f"{key}: {match[1]} can't be used: {match[2].rstrip('.')}."
    return None


def _explain_value(message: str) -> str | None:
    """Return a sentence about a value of the wrong type."""
    value = re.search(r"(?:Given|Got) value: (.*)", message)
    subtypes = re.search(r"Subtypes: \[(.*)\]$", message, re.MULTILINE)
    expected = subtypes or re.search(r"Expected an? (.+?)\.? Got value", message)
    if value is None or expected is None or "subclass" in message:
        return None
    kinds = re.findall(r"<class '([\w.]+)'>|Literal\[([^\]]*)\]|\b(dict)\[", expected[1])
    names = [literal or kind.rpartition(".")[2] or "a mapping" for kind, literal, _ in kinds]
    if not names or "NestedArg" in value[1]:
        return None
    listed = ", or ".join(name.replace("NoneType", "null") for name in names)
    hint = did_you_mean(value[1], re.findall(r"'([^']+)'", listed))
    if value[1] == "None":
        return f"{_key(message)} is missing; it takes {listed}."
    return f"{_key(message)} takes {listed}, not {value[1]!r}.{hint}"


def _key(message: str) -> str:
    """Return the option that a message is about: `data.init_args.geometry`."""
    return ".init_args.".join(re.findall(r'Parser key "([^"]+)"', message))


def _options(class_path: str) -> set[str]:
    """Return the options of a class and of the classes that it passes its `**kwargs` to."""
    names: set[str] = set()
    for each in getattr(pydoc.locate(class_path), "__mro__", (object,))[:-1]:
        names |= set(inspect.signature(each).parameters)
    return names - {"args", "kwargs"}
