"""What an alignment study is made of: checkpoints, and what is measured of each, checked before anything runs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lightning_mllm.errors import ConfigError
from lightning_mllm.study.engine.base import BaseCell, BaseStudy, check_files, check_names
from lightning_mllm.study.engine.cell_folder import Folder

TASK, PRESENCE, CAPTIONS, ALIGNMENT = "task", "presence", "captions", "alignment"
READINGS = ("ima_input", "ima_same_layer")  # what the analysis Alignment calls its scores, and
MODES = ("avg", "mean", "median", "max", "min", "max_mean")  # its comparisons of tokens
TOKENS = ("all", "without sinks")

_LAST = re.compile(r"last(-v\d+)?\.ckpt")  # what Lightning writes a second time


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint, or all of one training.

    Attributes:
        source: Hub id or folder.
        training: Training checkpoints that began from it, as a pattern: `runs/aligned/checkpoints/*step=*.ckpt`. Each
            of them is a checkpoint of the study, `<name>-<file>`. Only the file's name may have wildcards, and it must
            not match `last.ckpt` besides others, which may be one of them once more. The source itself is one under a
            name of its own.
        configs: Config files of its cells, behind `common`: the policy that it was trained under, a prompt of its own.
    """

    source: str
    training: str = ""
    configs: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class MeasureCell(BaseCell):
    """One measurement of one checkpoint.

    Attributes:
        checkpoint: Name of the checkpoint.
        measure: `task.<name>`, `presence`, `captions` or `alignment`.
        training: The training checkpoint, if it is one.
    """

    checkpoint: str
    measure: str
    training: str = ""

    @property
    def id(self) -> str:
        """Name of the cell and of its folder."""
        return f"{self.checkpoint}.{self.measure}"

    @property
    def likeness(self) -> tuple[tuple[object, ...], ...]:
        """What cells share that take about as long: a measure, of one model at best."""
        return (self.source, self.measure), (self.measure,)

    @property
    def order(self) -> tuple[str | int, ...]:
        """By which cells are sorted, to be dealt to machines."""
        return self.measure, self.checkpoint

    @property
    def weights(self) -> tuple[str, ...]:
        """Where its weights come from."""
        return (self.source, self.training) if self.training else (self.source,)

    @property
    def analyzes(self) -> bool:
        """Whether it is a `lightning analyze`."""
        return self.measure == ALIGNMENT

    def arguments(self) -> list[str]:
        """Return the command line that decides the cell's results."""
        return [
            "analyze" if self.analyzes else "test",
            *(part for file in self.configs for part in ("--config", file)),
            *("--model.checkpoint", self.source),
            *(["--ckpt_path", self.training] if self.training else []),
        ]


MeasureFolder = Folder[MeasureCell]


@dataclass(frozen=True, kw_only=True)
class AlignmentStudy(BaseStudy):
    """The alignment score of checkpoints, beside how well they answer and how much they hallucinate.

    A cell is one measurement of one checkpoint, a normal run; its config files are, in this order, `common`, those of
    the checkpoint, those of the measurement.

    Attributes:
        kind: Of study.
        checkpoints: Name -> hub id or folder, or a `Checkpoint`.
        tasks: Name -> config files of a `lightning test`, whose accuracy counts.
        presence: Config files of a `lightning test` with the callback `PopeReport`.
        captions: Config files of a `lightning test` with the callback `ChairReport`.
        alignment: Config files of a `lightning analyze` with the analysis `Alignment`.
        common: Config files of every cell.
        readings: Which alignment scores are set beside the rest: a reading, and how tokens are compared.
        tokens: Of which tokens.
        scorer: Whose accuracy is a task's where the samples have labels; elsewhere it is that of exact match.
        resamples: Of every bootstrap.
    """

    kind: Literal["alignment"] = "alignment"
    checkpoints: dict[str, str | Checkpoint]
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
            ConfigError: A name is no plain one, there is nothing to measure, there is no such score, a file is
                missing, or a checkpoint is there twice.
        """
        check_names("name", [self.name])
        check_names("checkpoints", self.checkpoints)
        if self.tasks:
            check_names("tasks", self.tasks)
        if len(measures := self.measures()) < 2 or ALIGNMENT not in measures:
            raise ConfigError(
                "An alignment study sets the alignment score beside something. Give config files to alignment, and to "
                f"one or more of tasks, presence and captions; there are some for {', '.join(measures) or 'none'}."
            )
        self._check_readings()
        if self.resamples < 2000:
            raise ConfigError(f"resamples is {self.resamples}; intervals at 95 % need 2000 or more.")
        for option, files in {"common": self.common, **measures}.items():
            check_files(option, files)
        for name, checkpoint in self._origins():
            check_files(f"checkpoints.{name}.configs", checkpoint.configs)
        check_names("checkpoints", [name for name, *_ in self._weights()])
        self._check_twins()

    def _check_readings(self) -> None:
        known = [f"{reading} {mode}" for reading in READINGS for mode in MODES]
        wrong = [reading for reading in self.readings if reading not in known or self.readings.count(reading) > 1]
        if wrong or not self.readings:
            raise ConfigError(
                f"readings is {self.readings}. Name one alignment score or more, each once, of {' and '.join(READINGS)}"
                f" with one of {', '.join(MODES)} behind it, e.g. 'ima_input avg'."
            )
        if self.tokens not in TOKENS:
            raise ConfigError(f"tokens is {self.tokens!r}, not one of {', '.join(map(repr, TOKENS))}.")

    def _check_twins(self) -> None:
        """Refuse a checkpoint under two names: it would count twice in every correlation."""
        seen: dict[tuple[object, ...], str] = {}
        for name, _, checkpoint, training in self._weights():
            weights = map(os.path.realpath, (checkpoint.source, training))
            twin = seen.setdefault((*weights, *checkpoint.configs), name)
            if twin != name:
                raise ConfigError(
                    f"checkpoints has {training or checkpoint.source} twice, as {twin!r} and as {name!r}, so that it "
                    "would count twice in every correlation. Leave one of them out."
                )

    def all_cells(self) -> list[MeasureCell]:
        """Return all cells; checkpoint by checkpoint, so that a study that is stopped early has some as a whole.

        Raises:
            ConfigError: A training has no checkpoints.
        """
        return [
            MeasureCell(
                checkpoint=name,
                measure=measure,
                training=training,
                source=checkpoint.source,
                configs=(*self.common, *checkpoint.configs, *files),
            )
            for name, _, checkpoint, training in self._weights()
            for measure, files in self.measures().items()
        ]

    def origins(self) -> dict[str, str]:
        """Return from which entry of `checkpoints` each checkpoint comes.

        Those of one training share it, and with them the checkpoint that the training began from.
        """
        first: dict[str, str] = {}
        weights = self._weights()
        return {name: first.setdefault(os.path.realpath(each.source), origin) for name, origin, each, _ in weights}

    def _weights(self) -> Iterator[tuple[str, str, Checkpoint, str]]:
        """Give name, entry and its name, and training checkpoint of each checkpoint."""
        for name, checkpoint in self._origins():
            if not checkpoint.training:
                yield name, name, checkpoint, ""
                continue
            pattern = Path(checkpoint.training)
            files = [file for file in pattern.parent.glob(pattern.name) if file.is_file()]
            if len(files) > 1 and (last := [file for file in files if _LAST.fullmatch(file.name)]):
                raise ConfigError(
                    f"checkpoints.{name}.training matches {last[0]} besides others, of which it may be one once more. "
                    "Match the others alone, for example by *step=*.ckpt; if it is of a later step than they are, give "
                    "it an entry of its own."
                )
            if not files:
                raise ConfigError(
                    f"checkpoints.{name}.training is {checkpoint.training}, which no file matches. Write "
                    "the checkpoints first (checkpointing.save_top_k: -1 keeps all of a fit). Wildcards count in the "
                    f"file's name only; paths count from the folder in which the study is started, here {Path.cwd()}."
                )
            for file in sorted(files, key=_numbers):
                yield f"{name}-{re.sub('[^A-Za-z0-9_-]', '', file.stem)}", name, checkpoint, str(file)

    def _origins(self) -> Iterator[tuple[str, Checkpoint]]:
        for name, checkpoint in self.checkpoints.items():
            yield name, Checkpoint(source=checkpoint) if isinstance(checkpoint, str) else checkpoint


def _numbers(file: Path) -> tuple[list[int], str]:
    """Return by what files are sorted: `step=9` is before `step=10`."""
    return [int(number) for number in re.findall(r"\d+", file.stem)], file.name
