"""The classes that a config can choose by name, read from source files: nothing is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from lightning_mllm.errors import did_you_mean

PACKAGE = Path(__file__).parents[1]
# option -> the base of the classes that it takes, what such a class is called, and an example
BASES = {
    "data": ("MLLMDataModule", "dataset", "Digits"),
    "data.init_args.prompt": ("Prompt", "prompt", "ClassificationPrompt"),
    "model.policy": ("FreezePolicy", "policy", "ProjectorOnly"),
    "model.scorers": ("Scorer", "scorer", "Likelihood"),
    "trainer.callbacks": ("Callback", "callback", "ProbeEachEpoch"),
    "analysis": ("Analysis", "analysis", "AnswerLens"),
}
_DEFINITION = re.compile(r"^class (\w+)(?:\(([^)]*)\))?", re.MULTILINE)


def subclass_names(base: str) -> set[str]:
    """Return the names of all classes of this package, and of Lightning, below a base class."""
    found = {base}
    # a name may be in both
    classes = [*_own_classes().items(), *_lightning_classes().items()]
    while new := {name for name, bases in classes if bases & found} - found:
        found |= new
    return found - {base}


def own_class_names() -> set[str]:
    """Return the names of all classes of this package."""
    return set(_own_classes())


def explain_class(option: str, name: str) -> str:
    """Return a sentence about a name that is none of the classes that an option takes."""
    base, kind, example = BASES[option]
    short = name.rpartition(".")[2]
    own = {each for each in subclass_names(base) & own_class_names() if each[0] != "_"}
    if short in own_class_names():
        return f"{short} is no {kind}, which {option} needs. One is {example}."
    hint = did_you_mean(short, own) or did_you_mean(short, subclass_names(base))
    return f"There is no {kind} {name!r}." + (
        hint or f" There are {', '.join(sorted(own))}, and your own as module.Class."
    )


@cache
def _own_classes() -> Mapping[str, set[str]]:
    return _classes_of([*PACKAGE.rglob("*.py"), *(PACKAGE / "callbacks").glob("*.py")])


@cache
def _lightning_classes() -> Mapping[str, set[str]]:
    spec = find_spec("lightning")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return _classes_of(file for folder in folders for file in Path(folder).glob("pytorch/**/*.py"))


def _classes_of(files: Iterable[Path]) -> dict[str, set[str]]:
    """Return the name of each class with the short names of its bases."""
    found: dict[str, set[str]] = {}
    for file in files:
        for name, bases in _DEFINITION.findall(file.read_text(encoding="utf-8")):
            found.setdefault(name, set()).update(
                re.findall(r"(\w+)(?:\[[^\]]*\])?\s*(?:,|$)", bases)
            )
    return found
