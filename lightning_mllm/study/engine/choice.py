"""Which kind of study a command line is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lightning_mllm.errors import ConfigError, did_you_mean
from lightning_mllm.study.engine.config_files import read_config_file
from lightning_mllm.study.engine.runnable import RunnableStudy

Kinds = Mapping[str, type[RunnableStudy]]


def choose_study(arguments: Sequence[str], kinds: Kinds) -> type[RunnableStudy]:
    """Return the class of the study that a command line describes.

    The option `kind` says which, or the last config file that has one; else it is the first kind.

    Args:
        arguments: The command line after `lightning study`.
        kinds: Name of a kind -> its class. The first one is the default.

    Raises:
        ConfigError: There is no such kind, it lacks an option of a config file, or a config file is
            not valid YAML.
    """
    configs = _read_configs(_values_of("--config", arguments))
    kind = next(iter(kinds))
    for config in configs.values():
        kind = str(config.get("kind", kind))
    for value in _values_of("--kind", arguments):
        kind = value
    if kind not in kinds:
        known = " and ".join(kinds)
        raise ConfigError(f"There is no kind {kind!r} of study, only {known}. Set the option kind.")
    for file, config in configs.items():
        for option in config:
            _check_option(kind, kinds, file, str(option).partition(".")[0])
    return kinds[kind]


def _values_of(option: str, arguments: Sequence[str]) -> list[str]:
    """Return the values of an option, written as `--option value` or `--option=value`.

    An option that follows is not a value: the command line's parser says that the value is missing.
    """
    values: list[str] = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option and equals:
            values.append(value)
        elif name == option:
            following = arguments[position + 1 : position + 2]
            values += [each for each in following if not each.startswith("--")]
    return values


def _read_configs(files: Sequence[str]) -> dict[str, Mapping[Any, Any]]:
    """Read the config files that exist; the command line's parser complains about the others."""
    configs = {}
    for file in files:
        content = read_config_file(file) if Path(file).is_file() else None
        if isinstance(content, Mapping):
            configs[file] = content
    return configs


def _check_option(kind: str, kinds: Kinds, file: str, name: str) -> None:
    """Refuse an option that no study of this kind has, and name the kind or the option meant.

    The command line's parser knows the options of one kind only.
    """
    options = _options_of(kinds[kind])
    if name in options:
        return
    way_out = did_you_mean(name, options) or f" It has {', '.join(options)}."
    for other, study in kinds.items():
        if name in _options_of(study):
            way_out = (
                f" A study of kind {other!r} has it: set kind: {other}, or leave the option out."
            )
            break
    raise ConfigError(f"{file}: a study of kind {kind!r} has no option {name!r}.{way_out}")


def _options_of(study: type[RunnableStudy]) -> list[str]:
    return [field.name for field in fields(study)]
