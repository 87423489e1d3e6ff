"""The parser of a command's options, which names the nearest right option for a misspelt one."""

from __future__ import annotations

import inspect
import logging
import pydoc
import re
import sys
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

# a short class name in a config resolves only if the class is imported
from lightning_mllm import analysis, data, evaluation  # noqa: F401
from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.cli.replaced_lists import (
    dropped_by_replaced_list,
    name_in_replaced_list,
    takes_replaced_lists,
)
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.text.prompts import Prompt
from lightning_mllm.errors import did_you_mean
from lightning_mllm.evaluation import Scorer
from lightning_mllm.models.freeze import FreezePolicy
from lightning_mllm.models.optimisation.muon import MuonAdamW  # noqa: F401
from lightning_mllm.testbed import datamodules  # noqa: F401
from lightning_mllm.testbed.domains import datamodule  # noqa: F401
from lightning_mllm.trainer_options import trainer_option_as_list

_CHOSEN_BY_NAME = (MLLMDataModule, FreezePolicy, Prompt, Scorer, Analysis)

logger = logging.getLogger(__name__)


class Parser(LightningArgumentParser):
    """Answers mistakes in a few lines, and warns when a list replaces another.

    Where a config file, or the command line, sets a list that an earlier file has set, only the
    later list counts.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # names and contents of the configs read so far
        self._files: list[tuple[str, Namespace]] = []

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Read a config file."""
        config: Namespace = super().parse_path(cfg_path, *args, **kwargs)
        self._warn_of_replaced_lists(config, str(cfg_path))
        self._files.append((str(cfg_path), config))
        return config

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parse the command line, and the config files that it names."""
        config: Namespace = super().parse_args(*args, **kwargs)
        self._warn_of_replaced_lists(config)
        for name, parser in self._subparsers_by_name().items():
            if config.get(name) is not None:
                parser._warn_of_replaced_lists(config[name])
        return config

    def _warn_of_replaced_lists(self, config: Namespace, file: str | None = None) -> None:
        """Compare lists with earlier files; on the command line, only lists of classes."""
        keys = [
            action.dest
            for action in self._actions
            if takes_replaced_lists(getattr(action, "_typehint", None))
        ]
        for _, content in [*self._files, (file, config)]:
            keys += [key for key, value in content.items() if type(value) is list]
        for key in dict.fromkeys(keys):
            earlier = [(name, content[key]) for name, content in self._files if key in content]
            if not earlier or key not in config:
                continue
            name, before = earlier[-1]
            gone = dropped_by_replaced_list(
                trainer_option_as_list(before), trainer_option_as_list(config[key])
            )
            if file is None:
                gone = [item for item in gone if isinstance(item, Namespace)]
            if gone:
                logger.warning(
                    "%s sets %s again, which drops what %s has there: %s. "
                    "To add to a list, write `%s+`.",
                    file or "The command line",
                    key,
                    name,
                    ", ".join(name_in_replaced_list(item) for item in gone),
                    key.rpartition(".")[2],
                )

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Exit with status 2 and a message."""
        message = self._explain(message)
        if not self.exit_on_error:
            return super().error(message, ex)
        sys.stderr.write(f"error: {message}\nFor all options: {self.prog} --help\n")
        sys.exit(2)

    def _explain(self, message: str) -> str:
        """Return a message of jsonargparse with the nearest right name."""
        if match := re.search(
            r"(?:unrecognized arguments: --|does not accept option ')([\w.]+)", message
        ):
            return message + self._nearest_option(match[1])
        if match := re.search(r"\S+ has no option .*\n\s*Did you mean .*\?", message):
            return match[0]  # about a class in a class: it has a hint already
        if match := re.search(
            r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message
        ):
            hint = did_you_mean(match[2], _options(match[1]))
            return f"{match[1]} has no option {match[2]!r}.{hint}"
        if match := re.search(r"Expected a dot import path string: (\w+)$", message, re.MULTILINE):
            hint = did_you_mean(match[1], _subclass_names(*_CHOSEN_BY_NAME))
            return f"There is no class {match[1]!r}.{hint}"
        return message

    def _nearest_option(self, wrong: str) -> str:
        known: set[str] = set()
        for parser in (self, *self._subparsers_by_name().values()):
            known |= {action.dest for action in parser._actions}
        return did_you_mean(wrong, known - {wrong})

    def _subparsers_by_name(self) -> dict[str, Parser]:
        found: dict[str, Parser] = {}
        for action in self._actions:
            if isinstance(action.choices, dict):
                found |= action.choices
        return found


def _options(class_path: str) -> set[str]:
    """Return the options of a class and of the classes that it passes its `**kwargs` to."""
    names: set[str] = set()
    for each in getattr(pydoc.locate(class_path), "__mro__", (object,))[:-1]:
        names |= set(inspect.signature(each).parameters)
    return names - {"args", "kwargs"}


def _subclass_names(*bases: type) -> set[str]:
    names: set[str] = set()
    for base in bases:
        subclasses: list[type] = base.__subclasses__()
        for subclass in subclasses:
            names |= {subclass.__name__} | _subclass_names(subclass)
    return names
