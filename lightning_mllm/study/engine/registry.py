"""Which kind of study a command line is about."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from lightning_mllm.errors import ConfigError
from lightning_mllm.study.engine.config_files import config_of
from lightning_mllm.study.engine.runnable import RunnableStudy


def choose_study(arguments: Sequence[str], kinds: Mapping[str, type[RunnableStudy]]) -> type[RunnableStudy]:
    """Return the class of the study that a command line describes.

    Its option `kind` says which, or that of the last of its config files that has one; else it is the first kind.

    Args:
        arguments: The command line.
        kinds: Name -> class.

    Raises:
        ConfigError: There is no such kind, it lacks an option of a config file, or a config file is no YAML.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[], nargs="?")
    parser.add_argument("--kind", nargs="?")
    options, _ = parser.parse_known_args(arguments)
    files = [file for file in options.config if file is not None and Path(file).is_file()]
    contents = {file: content for file in files if isinstance(content := config_of(file), Mapping)}
    named = [content["kind"] for content in contents.values() if "kind" in content]
    kind = options.kind or (str(named[-1]) if named else next(iter(kinds)))
    if kind not in kinds:
        raise ConfigError(f"There is no kind {kind!r} of study, only {' and '.join(kinds)}. Set the option kind.")
    for file, content in contents.items():
        _check_options(kind, kinds, file, content)
    return kinds[kind]


def _check_options(kind: str, kinds: Mapping[str, type[RunnableStudy]], file: str, names: Iterable[object]) -> None:
    """Refuse the options of a config file that no study of this kind has: the parser knows no other kind."""
    options = {each: [field.name for field in fields(study)] for each, study in kinds.items()}
    for name in (str(name).partition(".")[0] for name in names):
        if name in options[kind]:
            continue
        others = [each for each, known in options.items() if name in known]
        nearest = difflib.get_close_matches(name, options[kind], n=1)
        way_out = f"Did you mean {nearest[0]!r}?" if nearest else f"It has {', '.join(options[kind])}."
        if others:
            way_out = f"One of kind {others[0]!r} has: set kind: {others[0]}, or leave the option out."
        raise ConfigError(f"{file}: a study of kind {kind!r} has no option {name!r}. {way_out}")
