"""The config that a run saves, so that it can be repeated, also on another machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.cli import SaveConfigCallback

from lightning_mllm.cli.resolvers import has_resolver, resolved
from lightning_mllm.store.files import write_text
from lightning_mllm.tracking.loggers import log_config
from lightning_mllm.tracking.secrets import mask_secrets


class SaveConfig(SaveConfigCallback):
    """Writes the config into the run's own folder, and to W&B.

    In the folder, a text with `${testbed:...}` or `${oc.env:...}` stands as it was given, so that
    another machine gives it a value of its own.

    Args:
        args: As for Lightning's callback.
        arguments: The command line.
        kwargs: As for Lightning's callback.
    """

    def __init__(self, *args: Any, arguments: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._as_given: dict[str, str] = {}  # text with its values -> as it was given
        for text in _texts_of_arguments(arguments):
            if has_resolver(text):
                self._as_given.setdefault(resolved(text), text)

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Write `config.yaml`; Lightning calls this on rank zero only, before anything runs."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        portable = mask_secrets(self._restore(config))
        file = Path(trainer.default_root_dir) / "config.yaml"
        write_text(file, yaml.safe_dump(portable, sort_keys=False))
        log_config(trainer.loggers, mask_secrets(config))

    def _restore(self, node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: self._restore(value) for key, value in node.items()}
        if isinstance(node, list):
            return [self._restore(item) for item in node]
        return self._as_given.get(node, node) if isinstance(node, str) else node


def _texts_of_arguments(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the texts of a command line and of the YAML files that it names."""
    for argument in arguments:
        value = argument.partition("=")[2] if argument.startswith("--") else argument
        is_file = value.endswith((".yaml", ".yml")) and Path(value).is_file()
        content = Path(value).read_text(encoding="utf-8") if is_file else value
        try:
            yield from _texts_in(yaml.safe_load(content))
        except yaml.YAMLError:  # e.g. a prompt with a colon
            yield value


def _texts_in(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        for value in node.values():
            yield from _texts_in(value)
    elif isinstance(node, list):
        for item in node:
            yield from _texts_in(item)
    elif isinstance(node, str):
        yield node
