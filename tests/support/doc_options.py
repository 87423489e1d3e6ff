"""Which options the commands have, without parsing a whole command line."""

from __future__ import annotations

import contextlib
import inspect
import io
from functools import cache
from typing import Any

from lightning_mllm.analysis import Analysis
from lightning_mllm.analysis.subnetwork.stored_subnetwork import StoredSubNetwork
from lightning_mllm.cli.commands import COMMANDS
from lightning_mllm.cli.commands.command import Command
from lightning_mllm.cli.commands.model import ModelCLI
from lightning_mllm.cli.main import main
from lightning_mllm.data import HFColumns, MLLMDataModule, Prompt
from lightning_mllm.models.freeze import FreezePolicy

# classes whose options stand on command lines
_CHOSEN = (MLLMDataModule, HFColumns, Analysis, Prompt, FreezePolicy, StoredSubNetwork)
_EVERYWHERE = {"help", "version"}
_HIDDEN = {"data check": {"checkpoint"}}  # options that are not in the help


class _ParserIsBuiltError(Exception):
    """Ends the construction of the command line before it parses."""


class _Options(ModelCLI):
    def parse_arguments(self, parser: Any, args: Any) -> None:
        self.built: Any = parser
        raise _ParserIsBuiltError


class KnownOptions:
    """The options of all commands; each is built once, when it is asked for."""

    def __init__(self) -> None:
        self._of: dict[str, set[str]] = {}
        self._parameters = {name for each in _CHOSEN for name in _parameters_of_subclasses(each)}

    def has(self, command: Command, word: str) -> bool:
        """Return whether a command has the option of a word, such as `--data.init_args.root=x`."""
        return self._accepts(self._options_of(command), word)

    def anywhere(self, word: str) -> bool:
        """Return whether any command has the option."""
        return any(self.has(command, word) for command in COMMANDS)

    def _options_of(self, command: Command) -> set[str]:
        if command.name not in self._of:
            is_model = command.module == "model"
            options = _model_options(command.name) if is_model else _help_options(command.name)
            self._of[command.name] = options
        return self._of[command.name]

    def _accepts(self, options: set[str], word: str) -> bool:
        name = word.partition("=")[0].removeprefix("--").rstrip("+").replace("-", "_")
        if name in options or name in _EVERYWHERE:
            return True
        head, inner = name, list[str]()
        while head and head not in options:
            head, _, key = head.rpartition(".")
            inner += [key] if key != "init_args" else []
        return bool(head) and self._parameters.issuperset(inner)


@cache
def _model_options(name: str) -> set[str]:
    cli = _Options.__new__(_Options)
    with contextlib.suppress(_ParserIsBuiltError):
        cli.__init__([name])  # type: ignore[misc]  # so that what it has built is at hand
    return {action.dest for action in cli._subcommand_parsers[name]._actions}


@cache
def _help_options(name: str) -> set[str]:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        main([*name.split(), "--help"])
    words = shown.getvalue().replace(",", " ").replace("[", " ").split()
    options = [word.removeprefix("--").partition("=")[0] for word in words if word[:2] == "--"]
    return {option.replace("-", "_") for option in options} | _HIDDEN.get(name, set())


def _parameters_of_subclasses(base: type) -> set[str]:
    """Return the parameters of a class and its subclasses, and of the dataclasses among them."""
    names: set[str] = set()
    waiting: list[type] = [base]
    while waiting:
        each = waiting.pop()
        names |= set(inspect.signature(each).parameters)
        waiting += each.__subclasses__()
    return names
