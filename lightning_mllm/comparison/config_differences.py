"""What the configs of the runs say differently, option by option."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_mllm.comparison.run_files import ComparedRun
from lightning_mllm.errors import DataError

_NAMES = ("trainer.run.", "ckpt_path")  # of runs and files, which always differ
NOT_SET = "-"


def find_config_differences(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """Return option -> its value in each run, for the options that are not the same in all.

    Raises:
        DataError: A config can't be read.
    """
    configs = [_read_config(run.folder / "config.yaml") for run in runs]
    options: dict[str, None] = {}  # in order
    for config in configs:
        options |= dict.fromkeys(config)
    found: dict[str, list[str]] = {}
    for option in options:
        values = [config.get(option, NOT_SET) for config in configs]
        if len(set(values)) > 1 and not option.startswith(_NAMES):
            found[option] = values
    return found


def _read_config(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as YAML: {error}. Restore it.") from error
    return dict(_flatten(content, ""))


def _flatten(node: Any, option: str) -> Iterator[tuple[str, str]]:
    """Yield option and value of what is set; items of lists are options that have a number."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flatten(value, f"{option}.{key}" if option else str(key))
    elif isinstance(node, list) and any(isinstance(each, dict | list) for each in node):
        for number, value in enumerate(node):
            yield from _flatten(value, f"{option}.{number}")
    elif node is not None:
        text = str(node)
        # the modules of classes say nothing
        yield option, text.rpartition(".")[2] if option.endswith("class_path") else text
