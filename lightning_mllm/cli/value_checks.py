"""Options, numbers and choices that are none, by the constructors' texts: read, not imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from lightning_mllm.cli.class_index import PACKAGE
from lightning_mllm.cli.given import describe_place
from lightning_mllm.errors import ConfigError, did_you_mean

# section -> file of this package, and of Lightning, with the class whose options it has
_CONSTRUCTORS = {
    "trainer": ("Trainer", "trainer.py", "pytorch/trainer/trainer.py"),
    "model": ("MLLMModule", "models/module.py", ""),
    "checkpointing": (
        "Checkpointing ModelCheckpoint",
        "callbacks/checkpointing.py",
        "pytorch/callbacks/model_checkpoint.py",
    ),
    "data.init_args": ("MLLMDataModule", "data/loading/datamodule.py", ""),
}
_OF_METHODS = {"split": "Split"}  # option of several commands -> its annotation
# words that YAML, or our reader of numbers, takes for something else
_OTHER_WORDS = {"null", "none", "true", "false", "yes", "no", "on", "off", "inf", "nan", "infinity"}


def check_option_name(option: str, where: str) -> None:
    """Refuse an option that its section does not have.

    Raises:
        ConfigError: It is one.
    """
    section, _, name = option.partition(".")
    name, dot, rest = name.partition(".")
    if not name or section not in _CONSTRUCTORS or name in (known := _annotations(section)):
        return
    hint = did_you_mean(option, [f"{section}.{each}{dot}{rest}" for each in known])
    raise ConfigError(f"{describe_place(where, option)}there is no option {option}.{hint}")


def check_value(option: str, value: object, where: str) -> None:
    """Refuse a word where a number is needed, or where only some words are possible.

    Raises:
        ConfigError: It is one.
    """
    section, _, name = option.rpartition(".")
    is_word = isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*", value)
    known = section in _CONSTRUCTORS or option in _OF_METHODS
    if not is_word or not known or str(value).lower() in _OTHER_WORDS:
        return
    annotation = _OF_METHODS.get(option) or _annotations(section).get(name, "")
    kinds = _kinds(annotation)
    place = describe_place(where, option)
    if kinds <= {"int", "float"} and kinds:
        number = "a number" if "float" in kinds else "a whole number"
        raise ConfigError(
            f"{place}{option} takes {number} ({', '.join(sorted(kinds))}), not {value!r}."
        )
    choices = _choices().get(next(iter(kinds)), ()) if len(kinds) == 1 else ()
    if choices and value not in choices:
        raise ConfigError(
            f"{place}{option} takes {', '.join(choices)}, not {value!r}."
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
    names, own, lightnings = _CONSTRUCTORS[section]
    files = [PACKAGE / own]
    spec = find_spec("lightning")
    if lightnings and spec is not None:
        files += [Path(each) / lightnings for each in spec.submodule_search_locations or ()]
    found: dict[str, str] = {}
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else ():
            if isinstance(node, ast.ClassDef) and node.name in names.split():
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
