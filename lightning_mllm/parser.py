"""Messages for misspelt options: what there is instead, without the pages of usage."""

from __future__ import annotations

import difflib
import inspect
import pydoc
import re
import sys
from collections.abc import Iterable
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from lightning_mllm.data.base import MLLMDataModule
from lightning_mllm.data.prompts import Prompt
from lightning_mllm.evaluation import Scorer
from lightning_mllm.models.freeze import FreezePolicy

_CHOSEN_BY_NAME = (MLLMDataModule, FreezePolicy, Prompt, Scorer)


class Parser(LightningArgumentParser):
    """Says what is wrong without the pages of usage, and names the option nearest to a misspelt one."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Exit with status 2 and a message."""
        if match := re.search(r"(?:unrecognized arguments: --|does not accept option ')([\w.]+)", message):
            message += self._nearest(match[1])
        elif match := re.search(r"\S+ has no option .*\n\s*Did you mean .*\?", message):
            message = match[0]  # of a class within a class
        elif match := re.search(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message):
            message = f"{match[1]} has no option {match[2]!r}." + _suggestion(match[2], _options(match[1]))
        elif match := re.search(r"Expected a dot import path string: (\w+)$", message, re.MULTILINE):
            message = f"There is no class {match[1]!r}." + _suggestion(match[1], _class_names(*_CHOSEN_BY_NAME))
        if "subcommand" in message:
            message += "\n(Besides these, `lightning tiny` builds a small checkpoint.)"
        if not self.exit_on_error:
            return super().error(message, ex)
        sys.stderr.write(f"error: {message}\nFor all options: {self.prog} --help\n")
        sys.exit(2)

    def _nearest(self, key: str) -> str:
        parsers = [self, *(p for a in self._actions if isinstance(a.choices, dict) for p in a.choices.values())]
        return _suggestion(key, {action.dest for parser in parsers for action in parser._actions} - {key})


def _suggestion(wrong: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(wrong, sorted(known), n=1)
    return f'\nDid you mean "{found[0]}"?' if found else ""


def _options(class_path: str) -> set[str]:
    """Return the options of a class and of those that it hands its `**kwargs` to."""
    classes: tuple[type, ...] = getattr(pydoc.locate(class_path), "__mro__", ())
    names = {name for each in classes if each is not object for name in inspect.signature(each).parameters}
    return names - {"args", "kwargs"}


def _class_names(*bases: type) -> set[str]:
    names: set[str] = set()
    for base in bases:
        subclasses: list[type] = base.__subclasses__()
        for subclass in subclasses:
            names |= {subclass.__name__} | _class_names(subclass)
    return names
