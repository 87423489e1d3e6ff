"""Whether a cell is done, begun or new, and whether its files have the settings of now.

A cell's folder holds `started.json`, written before each run, the runs themselves, `log.txt`,
`lock`, and `cell.json`, written when all is there. Both JSON files say how the cell was made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic

from lightning_mllm import __version__
from lightning_mllm.errors import ConfigError
from lightning_mllm.store.files import read_json, write_json
from lightning_mllm.store.fingerprint import fingerprint_files
from lightning_mllm.store.manifest import MANIFEST, find_manifest_changes, manifest_digest
from lightning_mllm.study.engine.base import BaseCell, CellT
from lightning_mllm.study.engine.config_files import read_config_file

Making = Mapping[str, Any]  # what decides a cell's results


class CellState(StrEnum):
    """How far a cell is."""

    DONE = "done"
    BEGUN = "to resume"
    NEW = "to do"


@dataclass(frozen=True)
class CellFolder(Generic[CellT]):
    """The files of a cell.

    Attributes:
        cell: The cell whose files they are.
        path: The folder of the cell.
    """

    cell: CellT
    path: Path

    @property
    def done_file(self) -> Path:
        """The file that is written when all is there."""
        return self.path / "cell.json"

    @property
    def started_file(self) -> Path:
        """The file that is written before each run."""
        return self.path / "started.json"

    @property
    def log(self) -> Path:
        """What the runs printed."""
        return self.path / "log.txt"

    @property
    def state(self) -> CellState:
        """How far the cell is; one that left nothing to resume from is new."""
        if self.done_file.is_file():
            return CellState.DONE
        return CellState.BEGUN if self.continuation() else CellState.NEW

    def runs(self) -> list[Path]:
        """Return the folders of the runs that count, in their order: `<id>`, `<id>-2`, ...

        Runs from before the cell was last started from scratch don't count.
        """
        if not self.started_file.is_file():
            return self._all_runs()
        ignored = read_json(self.started_file).get("ignored", [])
        return [run for run in self._all_runs() if run.name not in ignored]

    def continuation(self) -> list[str]:
        """Return the options with which a run resumes from what there is; empty without anything.

        A fit resumes from its last checkpoint. An analysis resumes from the rows of a run that was
        stopped, if those rows were created with the settings of now.
        """
        newest_first = self.runs()[::-1]
        if self.cell.analyzes:
            return self._continuation_of_analysis(newest_first)
        for run in newest_first:
            checkpoint = run / "checkpoints" / "last.ckpt"
            if checkpoint.is_file():
                return ["--ckpt_path", str(checkpoint)]
        return []

    def _continuation_of_analysis(self, newest_first: Sequence[Path]) -> list[str]:
        most, furthest = 0, None  # the run that has begun the most of several analyses
        for run in newest_first:
            begun = len([*run.glob(f"analysis/*/*/{MANIFEST}")])
            if begun > most:
                most, furthest = begun, run
        if furthest is None or not self.started_file.is_file():
            return []
        changed = cell_folder_differences(
            read_json(self.started_file), cell_folder_making(self.cell)
        )
        return [] if changed else ["--resume", str(furthest)]

    def begin(self, making: Making) -> None:
        """Note how the cell is made, and that earlier runs don't count unless it is resumed."""
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
        if not self.done_file.is_file():
            return None
        seconds: float | None = read_json(self.done_file).get("seconds")
        return seconds

    def changes(self) -> list[str]:
        """Return what has changed since the cell's files were created; empty if nothing has."""
        state = self.state
        if state is CellState.NEW:
            return []
        path = self.done_file if state is CellState.DONE else self.started_file
        return (
            cell_folder_differences(read_json(path), cell_folder_making(self.cell))
            if path.is_file()
            else []
        )

    def _all_runs(self) -> list[Path]:
        numbers = {}
        for path in self.path.glob(f"{self.cell.id}*/"):
            match = re.fullmatch(r"(?:-(\d+))?", path.name.removeprefix(self.cell.id))
            if match:
                numbers[path] = int(match[1] or 1)
        return sorted(numbers, key=lambda path: numbers[path])


AnyFolder = CellFolder[Any]


def finished_cell_folders(folders: Iterable[CellFolder[CellT]]) -> list[CellFolder[CellT]]:
    """Return the folders of the cells that are done."""
    return [folder for folder in folders if folder.state is CellState.DONE]


def unfinished_cell_folders(folders: Iterable[CellFolder[CellT]]) -> list[CellFolder[CellT]]:
    """Return the folders of the cells that are not done."""
    return [folder for folder in folders if folder.state is not CellState.DONE]


def cell_folder_making(cell: BaseCell) -> Making:
    """Return what decides a cell's results: command line, config files' contents, and checkpoint.

    Comments, the order of keys, and the place of a local checkpoint don't count. The version is
    noted, but finished cells stay valid with a new one.
    """
    places = {*cell.weights}
    return {
        "cell": cell.id,
        "version": __version__,
        "checkpoint": " ".join(map(fingerprint_files, cell.weights)),
        "arguments": ["" if argument in places else argument for argument in cell.arguments()],
        "configs": {file: _digest(file) for file in cell.configs},
    }


def cell_folder_differences(then: Making, now: Making) -> list[str]:
    """Return what differs between two makings of a cell, by name; the version does not count."""
    before, after = (
        {
            "the checkpoint": each.get("checkpoint"),
            "the arguments": each.get("arguments"),
            **each.get("configs", {}),
        }
        for each in (then, now)
    )
    return list(find_manifest_changes(before, after))


def refuse_changed_cell_folders(folders: Sequence[AnyFolder]) -> None:
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
        f"{len(changed)} of {len(folders)} cells were created with different settings. The first "
        f"is {first.cell.id}, where this has changed: {', '.join(what)}. Give the study another "
        "name, undo the change, or delete the folders of the cells that are to run again, e.g. "
        f"{first.path}."
    )


def _digest(file: str) -> str:
    return manifest_digest([json.dumps(read_config_file(file), sort_keys=True, default=str)])
