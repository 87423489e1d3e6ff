"""Whether a cell is done, begun or new, and whether what there is of it was made as it would be made now.

A cell's folder holds `started.json`, written before its first run, the runs themselves, `log.txt`, and `cell.json`,
written when all is there. Both files say how the cell was made.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from lightning_mllm import __version__
from lightning_mllm.errors import ConfigError
from lightning_mllm.study.grid import Cell
from lightning_mllm.tracking.files import write_json


class State(StrEnum):
    """How far a cell is."""

    DONE = "done"
    BEGUN = "to resume"
    NEW = "to do"


@dataclass(frozen=True)
class CellFolder:
    """The files of a cell.

    Attributes:
        cell: The cell.
        path: Its folder.
    """

    cell: Cell
    path: Path

    @property
    def done_file(self) -> Path:
        """Written last."""
        return self.path / "cell.json"

    @property
    def log(self) -> Path:
        """What the runs printed."""
        return self.path / "log.txt"

    @property
    def state(self) -> State:
        """How far the cell is."""
        if self.done_file.is_file():
            return State.DONE
        return State.BEGUN if self.last_checkpoint() else State.NEW

    def runs(self) -> list[Path]:
        """Return the folders of the cell's runs, the first one first: `<id>`, `<id>-2`, ..."""
        numbers = {}
        for path in self.path.glob(f"{self.cell.id}*/"):
            if match := re.fullmatch(r"(?:-(\d+))?", path.name.removeprefix(self.cell.id)):
                numbers[path] = int(match[1] or 1)
        return sorted(numbers, key=lambda path: numbers[path])

    def last_checkpoint(self) -> Path | None:
        """Return the checkpoint to go on from, if there is one."""
        found = [run / "checkpoints" / "last.ckpt" for run in reversed(self.runs())]
        return next((path for path in found if path.is_file()), None)

    def begin(self) -> None:
        """Note how the cell is made."""
        write_json(self.path / "started.json", making_of(self.cell))

    def finish(self, seconds: float | None) -> None:
        """Mark the cell as done.

        Args:
            seconds: How long it took; None where that says nothing about the next one.
        """
        write_json(self.done_file, {**making_of(self.cell), "run": self.runs()[-1].name, "seconds": seconds})

    def seconds(self) -> float | None:
        """Return how long the cell took, as far as that is known."""
        seconds: float | None = (
            json.loads(self.done_file.read_text()).get("seconds") if self.done_file.is_file() else None
        )
        return seconds

    def changes(self) -> list[str]:
        """Return in what the cell would be made otherwise now than it was, empty if in nothing."""
        path = self.done_file if self.done_file.is_file() else self.path / "started.json"
        if not path.is_file():
            return []
        then, now = json.loads(path.read_text()), making_of(self.cell)
        changed = [] if then["arguments"] == now["arguments"] else ["the arguments"]
        files = [file for file, digest in now["configs"].items() if then["configs"].get(file, digest) != digest]
        return changed + files


def making_of(cell: Cell) -> dict[str, Any]:
    """Return what decides a cell's results: its command line and the contents of its config files.

    Comments, and the order of keys, don't count; the version is noted, but a new one makes no finished cell invalid.
    """
    return {
        "cell": cell.id,
        "version": __version__,
        "arguments": cell.arguments(),
        "configs": {file: _digest(Path(file)) for file in cell.configs},
    }


def refuse_changed(folders: list[CellFolder]) -> None:
    """Refuse to go on with a study that is no longer what it was.

    Raises:
        ConfigError: A cell that is done or begun would be made otherwise now.
    """
    changed = {folder: changes for folder in folders if (changes := folder.changes())}
    if not changed:
        return
    first, what = next(iter(changed.items()))
    raise ConfigError(
        f"{len(changed)} of {len(folders)} cells were made otherwise than the study says now. The first is "
        f"{first.cell.id}, where this has changed: {', '.join(what)}. Give the study another name, undo the change, "
        f"or delete the folders of the cells that are to be made anew, e.g. {first.path}."
    )


def _digest(path: Path) -> str:
    content = json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")), sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
