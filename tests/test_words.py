"""The documentation of an option stands alone, as `--help` shows it; one class has a name."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lightning_mllm"
FILES = sorted([*PACKAGE.rglob("*.py"), *PACKAGE.glob("callbacks/*.py")])  # rglob follows no links
LEANS_ON_ANOTHER = re.compile(r"(Of|Its|Likewise|Theirs|The same)\b")
ENTRY = re.compile(r" {4}(?P<name>\*{0,2}\w+)(?: \([^)]*\))?: (?P<text>.+)")


def room_of(file: Path) -> str:
    """Return the first folder, or the first two in rooms of experiments and studies."""
    *folders, name = file.relative_to(PACKAGE).with_suffix("").parts
    depth = 2 if folders and folders[0] in ("analysis", "study") else 1
    return "/".join(folders[:depth]) or name


ROOMS = sorted({room_of(file) for file in FILES})


def described(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield name and first line of each entry of the sections `Args` and `Attributes`."""
    inside = False
    for line in inspect.cleandoc(docstring).splitlines():
        if line and not line.startswith(" "):
            inside = line in ("Args:", "Attributes:")
        elif inside and (entry := ENTRY.fullmatch(line)):
            yield entry["name"], entry["text"]


def documented(file: Path) -> Iterator[tuple[str, str]]:
    """Yield `Class.option` and the first line of its documentation, for all of a module."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for name, text in described(ast.get_docstring(node, clean=False) or ""):
                yield f"{node.name}.{name}", text


def test_entries_of_both_sections_are_found_with_their_first_lines() -> None:
    text = """Do it.

    It is done: so.

    Args:
        one: Of `fit`.
        *many (int): More of
            it: so.

    Returns:
        what: Its.
    """

    assert list(described(text)) == [("one", "Of `fit`."), ("*many", "More of")]


@pytest.mark.parametrize("room", ROOMS)
def test_the_documentation_of_an_option_stands_alone(room: str) -> None:
    leaning = []
    for file in FILES:
        if room_of(file) == room:
            found = [
                (name, text) for name, text in documented(file) if LEANS_ON_ANOTHER.match(text)
            ]
            leaning += [f"{file.relative_to(PACKAGE)} {name}: {text}" for name, text in found]

    assert not leaning, "say what it is without the entry before it:\n" + "\n".join(leaning)


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(file.relative_to(PACKAGE)))

    assert {name: files for name, files in places.items() if len(files) > 1} == {}
