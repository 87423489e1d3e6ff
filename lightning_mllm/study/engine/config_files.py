"""Reads the config files of cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lightning_mllm.errors import ConfigError


def read_config_file(file: str) -> Any:
    """Return what a config file says, before interpolation.

    Raises:
        ConfigError: It is not valid YAML.
    """
    try:
        return yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"The config file {file} can't be read: {error}") from error
