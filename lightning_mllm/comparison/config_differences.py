"""What the configs of the runs say differently, option by option."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_mllm.comparison.run_files import CONFIG, ComparedRun
from lightning_mllm.errors import DataError

_ALWAYS_DIFFERENT = ("trainer.run.", "ckpt_path")  # names of runs and files
_CLASS, _OPTIONS = "class_path", "init_args"


def find_config_differences(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """Return option -> its value in each run, for the options that are not the same in all.

    Where the runs use different classes, the option is the class with all its options.

    Raises:
        DataError: A config can't be read.
    """
    configs = [_read_config(run.folder / CONFIG) for run in runs]
    found: dict[str, list[str]] = {}
    for option, values in _compare_nodes("", configs):
        if not option.startswith(_ALWAYS_DIFFERENT):
            found[option] = values
    return found


def _read_config(path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as YAML: {error}. Restore it.") from error


def _compare_nodes(option: str, nodes: Sequence[Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the options below a node that differ, with their values."""
    nodes = [_name_classes(node) for node in nodes]
    if any(isinstance(node, Mapping) and _CLASS not in node for node in nodes):
        nodes = [
            {} if node in (None, []) else node for node in nodes
        ]  # a section that is not there
    if all(isinstance(node, Mapping) and node.get(_CLASS) == _class_of(nodes[0]) for node in nodes):
        keys: dict[str, None] = {}  # in order
        for node in nodes:
            keys |= dict.fromkeys(node)
        for key in keys:
            name = option if key == _OPTIONS else f"{option}.{key}".lstrip(".")
            yield from _compare_nodes(name, [node.get(key) for node in nodes])
    elif any(node != nodes[0] for node in nodes):
        yield option, [_format_node(node) for node in nodes]


def _class_of(node: Any) -> Any:
    return node.get(_CLASS) if isinstance(node, Mapping) else None


def _name_classes(node: Any) -> Any:
    """Return a list of objects of different classes as a mapping from the names of the classes."""
    classes = [_class_of(each) for each in node] if isinstance(node, list) else []
    if not classes or None in classes or len(set(classes)) < len(classes):
        return node
    return {_last_word(each[_CLASS]): each for each in node}


def _format_node(node: Any) -> str:
    """Return the value of an option as it would be written in Python, without what is not set."""
    if isinstance(node, list):
        return f"[{', '.join(map(_format_node, node))}]"
    if not isinstance(node, Mapping):
        return "-" if node is None else str(node)
    if _CLASS not in node:
        return ", ".join(_format_options(node))
    options = ", ".join(_format_options(node.get(_OPTIONS) or {}))
    return f"{_last_word(node[_CLASS])}({options})"


def _format_options(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if value not in (None, [], {}):
            yield f"{name}={_format_node(value)}"


def _last_word(path: Any) -> str:
    return str(path).rpartition(".")[2]
