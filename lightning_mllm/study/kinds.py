"""The kinds of studies, and which of them a command line is about."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_mllm.errors import ConfigError
from lightning_mllm.study.alignment import AlignmentCommand
from lightning_mllm.study.config_files import config_of
from lightning_mllm.study.projection import StudyCommand
from lightning_mllm.study.runnable import RunnableStudy

KINDS: dict[str, type[RunnableStudy]] = {"projection": StudyCommand, "alignment": AlignmentCommand}


def study_class(arguments: Sequence[str]) -> type[RunnableStudy]:
    """Return the class of the study that a command line describes.

    Its option `kind` says which, or that of the last of its config files that has one; else it is the projection study.

    Raises:
        ConfigError: There is no such kind, or a config file is no YAML.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--kind")
    options, _ = parser.parse_known_args(arguments)
    contents = [config_of(file) for file in options.config if Path(file).is_file()]
    kinds = [content["kind"] for content in contents if isinstance(content, Mapping) and "kind" in content]
    kind = options.kind or (str(kinds[-1]) if kinds else "projection")
    if kind not in KINDS:
        raise ConfigError(f"There is no kind {kind!r} of study, only {' and '.join(KINDS)}. Set the option kind.")
    return KINDS[kind]
