"""What a command line and its config files give, in their order, before any class is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_mllm.cli.class_lists import CLASSES
from lightning_mllm.cli.config_files import read_config_file
from lightning_mllm.errors import ConfigError

CONFIG_OPTIONS = ("-c", "--config")


@dataclass(frozen=True)
class Given:
    """One value.

    Attributes:
        place: Number of the file, or of the argument, that gives it.
        where: Name of the file, or what was typed.
        key: The option, e.g. `trainer.callbacks[0].class_path`; empty for a word without one.
        value: The value; of a file's text as YAML has it, of an argument often the text.
    """

    place: int
    where: str
    key: str
    value: Any

    @property
    def option(self) -> str:
        """The option without places in lists and without `class_path`."""
        names = [name.partition("[")[0].rstrip("+") for name in self.key.split(".")]
        return ".".join(names).removesuffix(".class_path")


def read_given(arguments: Sequence[str]) -> list[Given]:
    """Return all that is given, in order.

    Raises:
        ConfigError: A config file can't be read.
    """
    found: list[Given] = []
    rest = list(arguments)
    place = 0
    while rest:
        place += 1
        argument = rest.pop(0)
        if not argument.startswith("-"):
            found.append(Given(place, argument, "", argument))
            continue
        option, has_value, value = argument.partition("=")
        takes_next = rest and not rest[0].startswith("--") and rest[0] not in CONFIG_OPTIONS
        if option == CLASSES:  # the only option with several values
            while rest and not rest[0].startswith("-"):
                value = rest.pop(0)
            has_value = "="
        elif not has_value and takes_next:
            value, has_value = rest.pop(0), "="
        if option not in CONFIG_OPTIONS:
            key = option.lstrip("-")
            found += [Given(place, option, *each) for each in _flatten(key, _parsed(value))]
        elif not has_value:
            raise ConfigError(f"After {option} there must be a file: {option} my_config.yaml.")
        else:
            content = read_config_file(value)
            found += [Given(place, value, *each) for each in _flatten("", content)]
    return found


def describe_place(where: str, option: str) -> str:
    """Return what a message about an option begins with: nothing if it names the option anyway."""
    return "" if where.lstrip("-") == option else f"{where}: "


def names_file(value: object) -> bool:
    """Return whether a value is a file that an option is read from."""
    return isinstance(value, str) and Path(value).suffix in (".yaml", ".yml", ".json")


def _parsed(value: str) -> Any:
    """Return an argument; a list or mapping as such."""
    if not value.startswith(("[", "{")):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _flatten(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _flatten(f"{key}.{name}".lstrip("."), each)
    elif isinstance(value, list) and value:
        for number, each in enumerate(value):
            yield from _flatten(f"{key}[{number}]", each)
    elif key:
        yield key, value
