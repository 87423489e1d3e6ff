"""Reads the config files of cells, and the one number in them that a study varies by itself."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lightning_mllm.errors import ConfigError

RATE = ("model", "learning_rates", "projector")  # where the projection's learning rate is


def config_of(file: str) -> Any:
    """Return what a config file says, before interpolation.

    Raises:
        ConfigError: It is no YAML.
    """
    try:
        return yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"The config file {file} can't be read: {error}") from error


def projector_rate(contents: Iterable[Any]) -> float | None:
    """Return the projection's learning rate that configs give, the last one counting; None where they give none.

    Raises:
        ConfigError: It is no number.
    """
    rate: Any = None
    for content in contents:
        node = content
        for key in RATE:
            node = node.get(key) if isinstance(node, Mapping) else None
        rate = rate if node is None else node
    try:
        return None if rate is None else float(rate)
    except (TypeError, ValueError):
        raise ConfigError(f"{'.'.join(RATE)} is {rate!r} in a config file of the study; it must be a number.") from None


def without_projector_rate(content: Any) -> Any:
    """Return a copy of a config in which the section of the projection's learning rate is there without the rate."""
    node = stripped = copy.deepcopy(content)
    for key in RATE[:-1]:
        node = node.get(key) if isinstance(node, Mapping) else None
    if isinstance(node, dict):
        node.pop(RATE[-1], None)
    return stripped
