"""Numbers and choices that are none, by the annotations of constructors: read, not imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from lightning_mllm.cli.class_index import PACKAGE
from lightning_mllm.errors import ConfigError, did_you_mean

# section -> files of this package and of Lightning, and the class in them
_CONSTRUCTORS = {
    "trainer": ("Trainer", "trainer.py", "pytorch/trainer/trainer.py"),
    "model": ("MLLMModule", "models/module.py", ""),
    "data.init_args": ("MLLMDataModule", "data/loading/datamodule.py", ""),
}
# words that YAML, or our reader of numbers, takes for something else
_OTHER_WORDS = {"null", "none", "true", "false", "yes", "no", "on", "off", "inf", "nan", "infinity"}


def check_value(option: str, value: object, where: str) -> None:
    """Refuse a word where a number is needed, or where only some words are possible.

    Raises:
        ConfigError: It is one.
    """
    section, _, name = option.rpartition(".")
    is_word = isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*", value)
    if not is_word or section not in _CONSTRUCTORS or str(value).lower() in _OTHER_WORDS:
        return
    kinds = _kinds(_annotations(section).get(name, ""))
    if kinds <= {"int", "float"} and kinds:
        number = "a number" if "float" in kinds else "a whole number"
        raise ConfigError(
            f"{where}: {option} takes {number} ({', '.join(sorted(kinds))}), not {value!r}."
        )
    choices = _choices().get(next(iter(kinds)), ()) if len(kinds) == 1 else ()
    if choices and value not in choices:
        raise ConfigError(
            f"{where}: {option} takes {', '.join(choices)}, not {value!r}."
            f"{did_you_mean(str(value), choices)}"
        )


def _kinds(annotation: str) -> set[str]:
    """Return the members of a union, without None."""
    inner = annotation
    while match := re.fullmatch(r"(?:Optional|Union)\[(.*)\]", inner):
        inner = match[1]
    return {each.strip() for each in re.split(r"[|,]", inner)} - {"None", ""}


@cache
def _annotations(section: str) -> Mapping[str, str]:
    """Return the annotations of the parameters of a section."""
    name, own, lightnings = _CONSTRUCTORS[section]
    files = [PACKAGE / own]
    spec = find_spec("lightning")
    if lightnings and spec is not None:
        files += [Path(each) / lightnings for each in spec.submodule_search_locations or ()]
    found: dict[str, str] = {}
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else ():
            if isinstance(node, ast.ClassDef) and node.name == name:
                found |= _parameters(node)
    return found


def _parameters(node: ast.ClassDef) -> dict[str, str]:
    starts = [each for each in node.body if getattr(each, "name", "") == "__init__"]
    arguments: list[ast.arg] = []
    for start in starts:
        if isinstance(start, ast.FunctionDef):
            arguments += [*start.args.args, *start.args.kwonlyargs]
    return {each.arg: ast.unparse(each.annotation) for each in arguments if each.annotation}


@cache
def _choices() -> Mapping[str, tuple[str, ...]]:
    """Return the words that each `Name = Literal[...]` of this package stands for."""
    found: dict[str, tuple[str, ...]] = {}
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for name, words in re.findall(r"^(\w+) = Literal\[([^\]]*)\]$", text, re.MULTILINE):
            found[name] = (*found.get(name, ()), *re.findall(r'"([^"]*)"', words))
    return found
