"""Checks of options that every kind of study has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lightning_mllm.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9_-]+")  # without a dot, which separates the names in a cell's id
_FEWEST_RESAMPLES = 2000


def check_study_names(option: str, names: Iterable[str]) -> None:
    """Refuse names that cannot be parts of a cell's id.

    Raises:
        ConfigError: There are no names, one has other characters, or one is there twice.
    """
    names = list(names)
    if not names:
        raise ConfigError(
            f"{option} is empty, so the study has no cell. Give it at least one entry."
        )
    lower_case = [name.lower() for name in names]
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{option} has the name {name!r}. It becomes part of folder names: use letters, "
                "digits, _ and - only."
            )
        if lower_case.count(name.lower()) > 1:
            raise ConfigError(
                f"{option} has {name!r} twice (upper and lower case count as the same, since names "
                "become folders). Rename one."
            )


def check_study_files(option: str, files: Iterable[str]) -> None:
    """Refuse config files that do not exist.

    Raises:
        ConfigError: One is missing.
    """
    for file in files:
        if not Path(file).is_file():
            raise ConfigError(
                f"{option} names the config file {file}, which does not exist. Paths are relative "
                f"to the folder in which the study is started, here {Path.cwd()}."
            )


def check_study_resamples(resamples: int) -> None:
    """Refuse bootstraps that are too small for 95 % intervals.

    Raises:
        ConfigError: There are too few resamples.
    """
    if resamples < _FEWEST_RESAMPLES:
        raise ConfigError(
            f"resamples is {resamples}; intervals at 95 % need {_FEWEST_RESAMPLES} or more."
        )
