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
    another machine gives it a value of its own. So does a path elsewhere that has come from it, as
    by `${model.checkpoint}`; another option that merely has the same word, such as `auto`, stays.

    Args:
        args: As for Lightning's callback.
        arguments: The command line.
        kwargs: As for Lightning's callback.
    """

    def __init__(self, *args: Any, arguments: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # option, None for any one; and text with its values -> as it was given
        self._as_given: dict[tuple[str | None, str], str] = {}
        for option, text in _texts_of_arguments(arguments):
            if has_resolver(text):
                value = resolved(text)
                self._as_given[option, value] = text
                if "/" in value:
                    self._as_given.setdefault((None, value), text)

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Write `config.yaml`; Lightning calls this on rank zero only, before anything runs."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        portable = mask_secrets(self._restore(config))
        file = Path(trainer.default_root_dir) / "config.yaml"
        write_text(file, yaml.safe_dump(portable, sort_keys=False))
        log_config(trainer.loggers, mask_secrets(config))

    def _restore(self, node: Any, option: str = "") -> Any:
        if isinstance(node, Mapping):
            return {key: self._restore(value, key) for key, value in node.items()}
        if isinstance(node, list):
            return [self._restore(item, option) for item in node]
        if not isinstance(node, str):
            return node
        return self._as_given.get((option, node), self._as_given.get((None, node), node))


def _texts_of_arguments(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield option and text, for all of a command line and of the YAML files that it names."""
    option = ""
    for argument in arguments:
        value = argument
        if argument.startswith("--"):
            name, _, value = argument.partition("=")
            option = name.strip("-+").rpartition(".")[2]
        is_file = value.endswith((".yaml", ".yml")) and Path(value).is_file()
        content = Path(value).read_text(encoding="utf-8") if is_file else value
        try:
            yield from _texts_in(yaml.safe_load(content), option)
        except yaml.YAMLError:  # e.g. a prompt with a colon
            yield option, value


def _texts_in(node: Any, option: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _texts_in(value, str(key).rstrip("+"))
    elif isinstance(node, list):
        for item in node:
            yield from _texts_in(item, option)
    elif isinstance(node, str):
        yield option, node
