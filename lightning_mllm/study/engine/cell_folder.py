"""Whether a cell is done, begun or new, and whether what there is of it was made as it would be made now.

A cell's folder holds `started.json`, written before each run, the runs themselves, `log.txt`, `lock`, and `cell.json`,
written when all is there. Both JSON files say how the cell was made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic

from lightning_mllm import __version__
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.store.files import read_json, write_json
from lightning_mllm.store.fingerprint import fingerprint_files
from lightning_mllm.store.manifest import MANIFEST, digest, find_changes
from lightning_mllm.study.engine.base import BaseCell, CellT
from lightning_mllm.study.engine.config_files import config_of

Making = Mapping[str, Any]  # what decides a cell's results


class State(StrEnum):
    """How far a cell is."""

    DONE = "done"
    BEGUN = "to resume"
    NEW = "to do"


@dataclass(frozen=True)
class Folder(Generic[CellT]):
    """The files of a cell.

    Attributes:
        cell: The cell.
        path: Its folder.
    """

    cell: CellT
    path: Path

    @property
    def done_file(self) -> Path:
        """Written last."""
        return self.path / "cell.json"

    @property
    def started_file(self) -> Path:
        """Written before each run."""
        return self.path / "started.json"

    @property
    def log(self) -> Path:
        """What the runs printed."""
        return self.path / "log.txt"

    @property
    def state(self) -> State:
        """How far the cell is; one that left nothing to go on from is new."""
        if self.done_file.is_file():
            return State.DONE
        return State.BEGUN if self.continuation() else State.NEW

    def runs(self) -> list[Path]:
        """Return the folders of the runs that count, the first one first: `<id>`, `<id>-2`, ...

        Those from before the cell was last begun anew don't.
        """
        ignored = read_json(self.started_file).get("ignored", []) if self.started_file.is_file() else []
        return [run for run in self._all_runs() if run.name not in ignored]

    def continuation(self) -> list[str]:
        """Return the options of a run that goes on from what there is, none where there is nothing.

        A fit goes on from its last checkpoint; an analysis from the rows of a run that was stopped, if they were made
        as they would be now.
        """
        runs = self.runs()[::-1]
        if not self.cell.analyzes:
            found = (run / "checkpoints" / "last.ckpt" for run in runs)
            return next((["--ckpt_path", str(path)] for path in found if path.is_file()), [])
        begun = {run: len([*run.glob(f"analysis/*/*/{MANIFEST}")]) for run in runs}  # one each of several analyses
        stopped = [run for run in sorted(runs, key=begun.__getitem__, reverse=True) if begun[run]]
        if not stopped or not self.started_file.is_file():
            return []
        changed = differences(read_json(self.started_file), making_of(self.cell))
        return [] if changed else ["--resume", str(stopped[0])]

    def begin(self, making: Making) -> None:
        """Note how the cell is made, and, if it is not resumed, that its earlier runs don't count."""
        kept = self.runs() if self.continuation() else []
        ignored = [run.name for run in self._all_runs() if run not in kept]
        write_json(self.started_file, {**making, "ignored": ignored})

    def finish(self, making: Making, seconds: float | None) -> None:
        """Mark the cell as done.

        Args:
            making: How it was made.
            seconds: How long it took; None where that says nothing about the next one.
        """
        write_json(self.done_file, {**making, "run": self.runs()[-1].name, "seconds": seconds})

    def seconds(self) -> float | None:
        """Return how long the cell took, as far as that is known."""
        seconds: float | None = read_json(self.done_file).get("seconds") if self.done_file.is_file() else None
        return seconds

    def changes(self) -> list[str]:
        """Return what has changed since the files of the cell were created; empty if nothing has."""
        state = self.state
        if state is State.NEW:
            return []
        path = self.done_file if state is State.DONE else self.started_file
        return differences(read_json(path), making_of(self.cell)) if path.is_file() else []

    def _all_runs(self) -> list[Path]:
        numbers = {}
        for path in self.path.glob(f"{self.cell.id}*/"):
            if match := re.fullmatch(r"(?:-(\d+))?", path.name.removeprefix(self.cell.id)):
                numbers[path] = int(match[1] or 1)
        return sorted(numbers, key=lambda path: numbers[path])


AnyFolder = Folder[Any]


def making_of(cell: BaseCell) -> Making:
    """Return what decides a cell's results: its command line, and the contents of its config files and checkpoint.

    Comments, the order of keys, and the place of a local checkpoint don't count; the version is noted, but a new one
    makes no finished cell invalid.
    """
    places = {*cell.weights}
    return {
        "cell": cell.id,
        "version": __version__,
        "checkpoint": " ".join(map(fingerprint_files, cell.weights)),
        "arguments": ["" if argument in places else argument for argument in cell.arguments()],
        "configs": {file: _digest(file) for file in cell.configs},
    }


def differences(then: Making, now: Making) -> list[str]:
    """Return the names of what differs between two makings of a cell; the version does not count."""
    before, after = (
        {"the checkpoint": each.get("checkpoint"), "the arguments": each.get("arguments"), **each.get("configs", {})}
        for each in (then, now)
    )
    return list(find_changes(before, after))


def refuse_changed(folders: Sequence[AnyFolder]) -> None:
    """Refuse to go on with a study that is no longer what it was.

    Raises:
        ConfigError: A cell that is done or begun was created with different settings.
        DataError: The file that says how a cell was made can't be read.
    """
    changed = {folder: changes for folder in folders if (changes := folder.changes())}
    if not changed:
        return
    first, what = next(iter(changed.items()))
    raise ConfigError(
        f"{len(changed)} of {len(folders)} cells were created with different settings. The first is {first.cell.id}, "
        f"where this has changed: {', '.join(what)}. Give the study another name, undo the change, or delete the "
        f"folders of the cells that are to run again, e.g. {first.path}."
    )


def _digest(file: str) -> str:
    return digest([json.dumps(config_of(file), sort_keys=True, default=str)])


def evaluation_of(folder: AnyFolder) -> Path:
    """Return the folder of the cell's test, in its last run.

    Raises:
        DataError: There is none with scores.
    """
    runs = folder.runs()
    found = list(runs[-1].glob("evaluation/test-step*/scores.json")) if runs else []
    if not found:
        where = runs[-1] if runs else folder.path
        raise DataError(f"{where}/evaluation/test-step*/scores.json is missing.{way_out(folder)}")
    return max((path.parent for path in found), key=lambda path: int(path.name.rpartition("step")[2]))


def way_out(folder: AnyFolder) -> str:
    """Return how to go on where a cell lacks a file."""
    return (
        f" The study needs it of each cell: leave the callback that writes it in the study's config files, or, if it "
        f"was removed by hand, delete {folder.path} and run the study again."
    )
