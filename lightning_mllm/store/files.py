"""Writes files and folders whole or not at all.

At every moment a file is absent, old or complete, even if several processes write it. A process
that is killed while it writes leaves at most a file that ends in `.part`, which nothing reads.
"""

from __future__ import annotations

import csv
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from lightning_mllm.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

PARTIAL = ".part"  # suffix of a file that is being written


@contextmanager
def replacing_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a file beside `path` to write to, which takes its place when the `with` block ends.

    Args:
        path: The file to replace; its folder is made.
        durable: Whether the content must be on the disk before it takes the name, so that not even
            a power cut leaves half a file. It costs the time of an fsync.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # machines that share the folder may share process ids, too
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{uuid4().hex[:8]}{PARTIAL}")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`, which takes its place when the `with` block ends.

    Args:
        path: The folder to make; it must not exist, or be empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as scratch:
        folder = Path(scratch) / "folder"
        folder.mkdir()
        yield folder
        if path.exists():
            path.rmdir()
        folder.replace(path)


def write_csv_file(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> Path:
    """Write a CSV file with a header and make its folder; None and NaN become empty cells."""
    with (
        replacing_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            writer.writerow([None if _is_nan(cell) else cell for cell in row])
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON file and make its folder; NaN becomes null, since JSON has none."""
    return write_text(path, json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write a text file and make its folder."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes, *, durable: bool = False) -> Path:
    """Write a file and make its folder; `durable` as in `replacing_file`."""
    with replacing_file(path, durable=durable) as temporary:
        temporary.write_bytes(content)
    return path


def write_tensor_file(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, durable: bool = False
) -> Path:
    """Write a safetensors file and make its folder.

    Args:
        path: The file.
        tensors: Name -> tensor on the CPU.
        metadata: What the file says about them.
        durable: As in `replacing_file`.

    Raises:
        OSError: The file can't be written, also where safetensors has an error of its own for it.
    """
    # a command that writes tables alone does without torch
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing_file(path, durable=durable) as temporary:
        try:
            save_file(contiguous, temporary, metadata=dict(metadata))
        except SafetensorError as error:
            raise OSError(str(error)) from error
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        DataError: The file holds something else, e.g. because it was cut off or edited.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # neither JSON nor text
        raise DataError(
            f"{path} can't be read as JSON: {error}. Restore it, or delete what it belongs to."
        ) from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise DataError(f"{path} holds a {kind}, not a JSON object. Delete what it belongs to.")
    return content


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _without_nan(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_nan(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_nan(item) for item in node]
    return None if _is_nan(node) else node
