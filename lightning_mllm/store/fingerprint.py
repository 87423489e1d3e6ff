"""Which weights these are: tensors by all of their values, files without reading them whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

# what a model and its processor consist of
_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".bin", ".safetensors")
_WHOLE = 1 << 20  # files up to this size are read whole
_TAIL = 1 << 16  # of other files: there a torch.save has the checksums of its parts
_SAMPLE = 256  # bytes of each tensor


def fingerprint_tensors(named: Iterable[tuple[str, Tensor]], about: str = "") -> str:
    """Return a hash of names, shapes, dtypes and all values of tensors.

    Args:
        named: Names and tensors, in a fixed order.
        about: What else the hash depends on.
    """
    digest = hashlib.sha256(about.encode())
    for name, tensor in named:
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(values.shape)}{values.dtype}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_files(source: str) -> str:
    """Return what identifies a checkpoint: of a folder or a file a hash, of anything else its name.

    The hash of a folder covers the names and sizes of its files, small files as a whole, and of
    safetensors the header and the beginning of every tensor: training changes those, while names,
    sizes and headers stay. Files that the index of a sharded checkpoint names count wherever they
    are.
    """
    path = Path(source)
    if path.is_file():  # a training checkpoint
        return _hash_files(str(path.parent), ((path.name, *_read_state(path)),))
    if not path.is_dir():
        return source
    states = []
    for file in _list_files(path):
        states.append((os.path.relpath(file, path), *_read_state(file)))
    return _hash_files(source, tuple(states))


@lru_cache(maxsize=64)
def _hash_files(folder: str, states: tuple[tuple[str, int, int], ...]) -> str:
    """Hash files; as long as their sizes and times stay, they are read once."""
    digest = hashlib.sha256()
    for name, size, _ in states:
        digest.update(f"{name} {size} ".encode())
        with Path(folder, name).open("rb") as file:
            _add_file(digest, file, size, is_safetensors=name.endswith(".safetensors"))
    return f"sha256:{digest.hexdigest()[:16]}"


def _add_file(digest: Any, file: BinaryIO, size: int, *, is_safetensors: bool) -> None:
    if size <= _WHOLE:
        digest.update(file.read())
    elif is_safetensors:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        digest.update(header)
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        for first, end in sorted(each["data_offsets"] for each in tensors.values()):
            file.seek(8 + length + first)
            digest.update(file.read(min(end - first, _SAMPLE)))
    else:
        file.seek(-_TAIL, os.SEEK_END)
        digest.update(file.read())


def _list_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint: its own, and those that its index names."""
    files = {path for path in folder.iterdir() if path.is_file() and path.suffix in _SUFFIXES}
    for index in folder.glob("*.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        files |= set(filter(Path.is_file, map(folder.joinpath, shards)))
    return sorted(files)


def _read_state(file: Path) -> tuple[int, int]:
    state = file.stat()
    return state.st_size, state.st_mtime_ns
