"""The parser of a command's options, which names the nearest right option for a misspelt one."""

from __future__ import annotations

import logging
import sys
from argparse import Action
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from lightning_mllm.cli.explanations import explain
from lightning_mllm.cli.replaced_lists import (
    dropped_by_replaced_list,
    name_in_replaced_list,
    takes_replaced_lists,
)
from lightning_mllm.option_lists import trainer_option_as_list

logger = logging.getLogger(__name__)


class PlainParser(ArgumentParser):
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
        message = explain(message, self.prog, self._options())
        if not self.exit_on_error:
            return super().error(message, ex)
        sys.stderr.write(f"error: {message}\nFor all options: {self.prog} --help\n")
        sys.exit(2)

    def _options(self) -> set[str]:
        known: set[str] = set()
        for parser in (self, *self._subparsers_by_name().values()):
            known |= {_name_of(action) for action in parser._actions}
        return known

    def _subparsers_by_name(self) -> dict[str, PlainParser]:
        found: dict[str, PlainParser] = {}
        for action in self._actions:
            if isinstance(action.choices, dict):
                found |= action.choices
        return found


def _name_of(action: Action) -> str:
    """Return an option as it is typed, without the dashes before it."""
    names = [name for name in action.option_strings if name.startswith("--")]
    return names[0].removeprefix("--") if names else action.dest
