"""The learning rate of the projection: the one number in the config files that a study varies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from lightning_mllm.errors import ConfigError
from lightning_mllm.study.engine.config_files import read_config_file

_KEYS = ("model", "learning_rates", "projector")
RATE = ".".join(_KEYS)


def without_rate(files: Iterable[str]) -> list[Any]:
    """Return the contents of config files without the projection's learning rate."""
    contents = []
    for file in files:
        content = deepcopy(read_config_file(file))
        node = content
        for key in _KEYS[:-1]:
            node = node.get(key) if isinstance(node, Mapping) else None
        if isinstance(node, dict):
            node.pop(_KEYS[-1], None)
        contents.append(content)
    return contents


def projector_rate(files: Iterable[str]) -> float | None:
    """Return the projection's learning rate in the last config file that has one, or None.

    Raises:
        ConfigError: It is not a number, or a file is not valid YAML.
    """
    rate: Any = None
    for file in files:
        node = read_config_file(file)
        for key in _KEYS:
            node = node.get(key) if isinstance(node, Mapping) else None
        rate = rate if node is None else node
    try:
        return None if rate is None else float(rate)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{RATE} is {rate!r} in a config file of the study; it must be a number."
        ) from None
