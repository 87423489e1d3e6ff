"""What the alignment study is made of, checked before anything runs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Literal

from lightning_mllm.alignment_names import ALL_TOKENS, MODES, NO_SINKS, SCORE_NAMES
from lightning_mllm.errors import ConfigError
from lightning_mllm.study.engine.checks import (
    check_study_files,
    check_study_names,
    check_study_resamples,
)
from lightning_mllm.study.engine.runnable import RunnableStudy

TASK, PRESENCE, CAPTIONS, ALIGNMENT = "task", "presence", "captions", "alignment"

_LAST = re.compile(r"last(-v\d+)?\.ckpt")  # what Lightning writes a second time


@dataclass(frozen=True, kw_only=True)
class AlignmentStudyCheckpoint:
    """A checkpoint, or all checkpoints of one training.

    Attributes:
        source: Hub id or folder.
        training: Training checkpoints that began from `source`, as a pattern such as
            `runs/aligned/checkpoints/*step=*.ckpt`. Each of them is a checkpoint of the study,
            `<name>-<file>`. Only the file's name may have wildcards. The pattern must not match
            `last.ckpt` together with others, since it may be a copy of one of them. The source
            itself is measured only if it is an entry, too.
        configs: Config files of its cells, after `common`: the policy that it was trained under, a
            prompt of its own.
    """

    source: str
    training: str = ""
    configs: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class AlignmentStudyWeights:
    """The weights of one checkpoint of the study.

    Attributes:
        name: Name of the checkpoint.
        origin: Name of the entry of `checkpoints` that it comes from.
        checkpoint: That entry: the source and its config files.
        training: The training checkpoint, if it is one.
    """

    name: str
    origin: str
    checkpoint: AlignmentStudyCheckpoint
    training: str = ""


@dataclass(frozen=True, kw_only=True)
class AlignmentStudy(RunnableStudy):
    """The alignment score of checkpoints, beside their accuracy and how much they hallucinate.

    A cell is one measurement of one checkpoint, a normal run. Its config files are, in this order,
    `common`, those of the checkpoint, and those of the measurement.

    Attributes:
        kind: Which kind of study it is; `alignment` for this one.
        checkpoints: Name -> hub id or folder, or a `AlignmentStudyCheckpoint`.
        tasks: Name -> config files of a `lightning test`, whose accuracy counts.
        presence: Config files of a `lightning test` with the callback `PopeReport`.
        captions: Config files of a `lightning test` with the callback `ChairReport`.
        alignment: Config files of a `lightning analyze` with the analysis `Alignment`.
        common: Config files of every cell.
        readings: Which alignment scores are compared with the rest, as the analysis names them: a
            reading, and how tokens are compared.
        tokens: Which tokens the alignment scores are computed from, as the analysis names them.
        scorer: Which scorer gives the accuracy of a task whose samples have labels; elsewhere the
            accuracy is that of exact match.
        resamples: Number of resamples of every bootstrap.
    """

    kind: Literal["alignment"] = "alignment"
    checkpoints: dict[str, str | AlignmentStudyCheckpoint]
    tasks: dict[str, list[str]] = field(default_factory=dict)
    presence: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    alignment: list[str]
    common: list[str] = field(default_factory=list)
    readings: list[str] = field(default_factory=lambda: ["ima_input avg", "ima_same_layer avg"])
    tokens: str = "all"
    scorer: str = "generation"
    resamples: int = 2000

    def measures(self) -> dict[str, list[str]]:
        """Return what is measured of each checkpoint, and its config files."""
        found = {f"{TASK}.{name}": files for name, files in self.tasks.items()}
        found |= {PRESENCE: self.presence, CAPTIONS: self.captions, ALIGNMENT: self.alignment}
        return {measure: files for measure, files in found.items() if files}

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: A name has other characters than a cell's id, there is nothing to measure,
                a file is missing, or a checkpoint is there twice.
        """
        check_study_names("name", [self.name])
        check_study_names("checkpoints", self.checkpoints)
        if self.tasks:
            check_study_names("tasks", self.tasks)
        measures = self.measures()
        if len(measures) < 2 or ALIGNMENT not in measures:
            raise ConfigError(
                "An alignment study compares the alignment score with something. Give config files "
                "to alignment, and to one or more of tasks, presence and captions; there are some "
                f"for {', '.join(measures) or 'none'}."
            )
        self._check_scores()
        check_study_resamples(self.resamples)
        for option, files in {"common": self.common, **measures}.items():
            check_study_files(option, files)
        for name, entry in self._entries():
            check_study_files(f"checkpoints.{name}.configs", entry.configs)
        check_study_names("checkpoints", [weights.name for weights in self.weights()])
        self._check_twins()

    def _check_scores(self) -> None:
        """Refuse alignment scores that the analysis does not have, before anything is run."""
        known = {f"{name} {mode}" for name, mode in product(SCORE_NAMES, MODES)}
        unknown = set(self.readings) - known
        if unknown or not self.readings or len(set(self.readings)) < len(self.readings):
            raise ConfigError(
                f"readings is {self.readings}. Name one alignment score or more, each once: "
                f"{' or '.join(SCORE_NAMES)}, then one of {', '.join(MODES)}, e.g. 'ima_input avg'."
            )
        if self.tokens not in (ALL_TOKENS, NO_SINKS):
            raise ConfigError(f"tokens is {self.tokens!r}, not {ALL_TOKENS!r} or {NO_SINKS!r}.")

    def _check_twins(self) -> None:
        """Refuse a checkpoint under two names: it would count twice in every correlation."""
        seen: dict[tuple[str, ...], str] = {}
        for each in self.weights():
            source, training = each.checkpoint.source, each.training
            places = os.path.realpath(source), os.path.realpath(training)
            twin = seen.setdefault((*places, *each.checkpoint.configs), each.name)
            if twin != each.name:
                raise ConfigError(
                    f"checkpoints has {training or source} twice, as {twin!r} and as "
                    f"{each.name!r}, so that it would count twice in every correlation. Leave one "
                    "of them out."
                )

    def origins(self) -> dict[str, str]:
        """Return from which entry of `checkpoints` each checkpoint comes.

        The checkpoints of one training share it, and the checkpoint that the training began from
        shares it, too.
        """
        first: dict[str, str] = {}
        found = {}
        for each in self.weights():
            place = os.path.realpath(each.checkpoint.source)
            found[each.name] = first.setdefault(place, each.origin)
        return found

    def weights(self) -> Iterator[AlignmentStudyWeights]:
        """Yield the weights of all checkpoints, those of a training in the order of its steps.

        Raises:
            ConfigError: A training has no checkpoints, or one of them may be there twice.
        """
        for name, entry in self._entries():
            if not entry.training:
                yield AlignmentStudyWeights(name=name, origin=name, checkpoint=entry)
                continue
            for file in _training_checkpoints(name, entry.training):
                suffix = re.sub("[^A-Za-z0-9_-]", "", file.stem)
                yield AlignmentStudyWeights(
                    name=f"{name}-{suffix}", origin=name, checkpoint=entry, training=str(file)
                )

    def _entries(self) -> Iterator[tuple[str, AlignmentStudyCheckpoint]]:
        for name, entry in self.checkpoints.items():
            yield name, AlignmentStudyCheckpoint(source=entry) if isinstance(entry, str) else entry


def _training_checkpoints(name: str, pattern: str) -> list[Path]:
    """Return the files of a training in the order of their numbers.

    Raises:
        ConfigError: There is none, or one may be there twice.
    """
    path = Path(pattern)
    files = [file for file in path.parent.glob(path.name) if file.is_file()]
    last = [file for file in files if _LAST.fullmatch(file.name)]
    if last and len(files) > 1:
        raise ConfigError(
            f"checkpoints.{name}.training matches {last[0]} together with others, and it may be a "
            "copy of one of them. Match the others alone, for example by *step=*.ckpt; if it is "
            "from a later step than they are, give it its own entry."
        )
    if not files:
        raise ConfigError(
            f"checkpoints.{name}.training is {pattern}, which no file matches. Write the "
            "checkpoints first (checkpointing.save_top_k: -1 keeps all of a fit). Only the file's "
            "name may have wildcards; paths are relative to the folder in which the study is "
            f"started, here {Path.cwd()}."
        )
    return sorted(files, key=_sort_key)


def _sort_key(file: Path) -> tuple[list[int], str]:
    """Return by what files are sorted: `step=9` is before `step=10`."""
    return [int(number) for number in re.findall(r"\d+", file.stem)], file.name
