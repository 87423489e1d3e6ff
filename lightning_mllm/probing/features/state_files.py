"""States of many samples as safetensors files, written shard by shard, with one index of them.

A folder has `index.csv`, with a row per sample and point, and the files that it names. The tensor
`states` of a file has the rows of many samples, (rows, width); the index says which are whose. The
files of a point in the order of their names have the rows in the order of the index.

At most a shard and a batch are in memory. Each file is whole or not there. A shard counts once its
part of the index is there, too, so that a stopped extraction can be continued.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from lightning_mllm.errors import ConfigError, DataError, NotFiniteError
from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.probing.features.points import Point
from lightning_mllm.probing.features.states import SampleStates
from lightning_mllm.store.files import PARTIAL, write_csv_file, write_tensor_file
from lightning_mllm.store.manifest import MANIFEST, claim_folder_in_manifest

StateDType = Literal["float32", "float16", "bfloat16"]
INDEX = "index.csv"
_PART = "index-*.csv"
_SHARD = 256 * 2**20  # bytes of states after which files are written


@dataclass(frozen=True)
class StateRow:
    """One row of the index: which rows of which file are a sample's.

    Attributes:
        sample_id: Id of the sample.
        label: The sample's class; empty without one.
        split: Split of the data.
        point: Name of the point.
        file: Name of the file.
        start: First of its rows in the file.
        end: The row after its last.
        spans: Segment -> [[from, up to], ...] in its rows, as JSON; for tokens in the LLM.
        images: Per image, what its rows are, as JSON; empty where tokens were pooled.
    """

    sample_id: str
    label: str
    split: str
    point: str
    file: str
    start: int
    end: int
    spans: str = ""
    images: str = ""


_COLUMNS = tuple(field.name for field in fields(StateRow))


class StateWriter:
    """Writes the states of a split into a folder.

    Args:
        folder: A folder that does not exist, or holds what was written with equal settings.
        points: Where the states are read.
        dtype: Data type in the files.
        split: Split of the data, for the index.
        rank: Number of this process.
        world_size: Number of processes that write into the folder.

    Attributes:
        done: Ids of the samples that the folder has.
    """

    def __init__(
        self,
        folder: Path,
        points: Sequence[Point],
        *,
        dtype: StateDType,
        split: str,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.folder, self._points, self._split = folder, tuple(points), split
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._rank, self._world_size = rank, world_size
        self._tensors: defaultdict[str, list[Tensor]] = defaultdict(list)  # point -> states
        self._ids: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._ends: defaultdict[str, int] = defaultdict(int)  # point -> rows so far
        self._rows: list[StateRow] = []
        self._bytes = 0
        self.done = {row.sample_id for row in self._written()}
        files = [file for point in points for file in folder.glob(f"{point.name}-*.safetensors")]
        ends = [file.stem.rpartition("-")[2] for file in files]  # other files may lie there, too
        numbers = [int(end) for end in ends if end.isdecimal()]
        turn = max(numbers, default=-1) // world_size + 1  # that no process has used
        self._number = turn * world_size + rank

    def add(
        self, states: Iterable[SampleStates], labels: Mapping[str, str], images: Mapping[str, Any]
    ) -> None:
        """Take the states of whole samples, and write files if there are enough.

        Args:
            states: Each sample's states at each point.
            labels: Sample id -> class, for samples that have one.
            images: Sample id -> per image, the rows and columns of its visual tokens.

        Raises:
            NotFiniteError: A state is NaN, infinite, or too large for the data type.
            DataError: The disk is full or can't be written.
        """
        for each in states:
            name = each.point.name
            rows, start = self._cast(each), self._ends[name]
            self._tensors[name].append(rows)
            if each.token_ids is not None:
                self._ids[name].append(each.token_ids.int())
            self._ends[name] += len(rows)
            self._bytes += rows.nbytes
            grids = images.get(each.sample_id) if each.point.place not in ("tower", "pre") else None
            self._rows.append(
                StateRow(
                    each.sample_id,
                    labels.get(each.sample_id, ""),
                    self._split,
                    name,
                    f"{name}-{self._number:05}.safetensors",
                    start,
                    start + len(rows),
                    json.dumps(each.spans) if each.spans else "",
                    _describe_images(each.images, grids),
                )
            )
        if self._bytes >= _SHARD:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory."""
        if not self._rows:
            return
        try:
            for name, parts in self._tensors.items():
                tensors = {"states": torch.cat(parts)}
                if name in self._ids:
                    tensors["token_ids"] = torch.cat(self._ids[name])
                path = self.folder / f"{name}-{self._number:05}.safetensors"
                write_tensor_file(path, tensors, {"point": name})
            rows = map(astuple, self._rows)
            write_csv_file(self.folder / f"index-{self._number:05}.csv", _COLUMNS, rows)
        except OSError as error:
            raise DataError(
                f"The states can't be written to {self.folder}: {error}. Make room there and run "
                "the same command again, which continues; or extract less: fewer points, pooled "
                "states, dtype float16."
            ) from error
        self.done |= {row.sample_id for row in self._rows}
        self._rows, self._bytes = [], 0
        for kept in (self._tensors, self._ids, self._ends):
            kept.clear()
        self._number += self._world_size

    def merge(self) -> Path:
        """Make `index.csv` of the parts of all processes; one does it when all have finished."""
        order = [point.name for point in self._points]
        found: dict[tuple[str, str], StateRow] = {}
        for row in self._written():
            found.setdefault((row.point, row.sample_id), row)
        rows = sorted(found.values(), key=lambda row: (order.index(row.point), row.file, row.start))
        path = write_csv_file(self.folder / INDEX, _COLUMNS, map(astuple, rows))
        for part in self.folder.glob(_PART):
            part.unlink()
        return path

    def _cast(self, each: SampleStates) -> Tensor:
        """Return the states in the files' data type."""
        what = f"The states at {each.point.name}"
        way_out = "use an earlier checkpoint, or model.dtype bfloat16 or float32"
        check_finite(each.states[None], [each.sample_id], what, way_out)
        cast = each.states.to(self._dtype)
        if not cast.isfinite().all():
            raise NotFiniteError(
                f"{what} of sample {each.sample_id!r} reach {each.states.abs().max():.3g}, which "
                f"{self._dtype} can't hold. Use dtype bfloat16 or float32."
            )
        return cast

    def _written(self) -> list[StateRow]:
        rows: list[StateRow] = []
        for path in (self.folder / INDEX, *sorted(self.folder.glob(_PART))):
            if path.is_file():
                rows += read_state_index(path)
        return rows


def claim_state_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make a folder for states, or check that it has those of equal settings; one process does it.

    Raises:
        ConfigError: The folder holds something else, or states of other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file. Name another folder: --output FOLDER.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise ConfigError(
            f"The folder {folder} is not empty, and what is in it was not written by `lightning "
            "extract`. Name another folder: --output FOLDER."
        )
    folder.mkdir(parents=True, exist_ok=True)
    claim_folder_in_manifest(folder, settings)
    for leftover in folder.glob(f"*{PARTIAL}"):  # of a process that was killed
        leftover.unlink()


def read_state_index(path: Path) -> list[StateRow]:
    """Read an index, or a part of one.

    Raises:
        DataError: It has other columns.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != _COLUMNS:
            raise DataError(
                f"{path} has not the columns of an index ({', '.join(_COLUMNS)}). Restore it, or "
                "extract again into another folder."
            )
        rows = []
        for row in reader:
            cells: dict[str, Any] = {**row, "start": int(row["start"]), "end": int(row["end"])}
            rows.append(StateRow(**cells))
        return rows


def _describe_images(shapes: Sequence[tuple[int, int]], grids: Any) -> str:
    """Return the cell `images`, as JSON."""
    described = []
    for k, (views, tokens) in enumerate(shapes):
        image: dict[str, Any] = {"views": views, "tokens": tokens}
        if grids:
            image["grids"] = grids[k]
        described.append(image)
    return json.dumps(described) if described else ""


def state_shape(path: Path) -> tuple[int, str]:
    """Return the width of the states in a file, and their data type."""
    with safe_open(path, framework="pt") as file:
        states = file.get_slice("states")
        return int(states.get_shape()[1]), str(states.get_dtype())
