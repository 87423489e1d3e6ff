"""Tells whether a checkpoint in a local folder is still the one that it was, without reading all of its weights."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".bin", ".safetensors")  # what a model and its processor consist of
_WHOLE = 1 << 20  # files up to this size are read whole
_TAIL = 1 << 16  # of other files: there a torch.save has the checksums of its parts
_SAMPLE = 256  # bytes of each tensor


def fingerprint(source: str) -> str:
    """Return what identifies a checkpoint: of a folder or a file a hash, of anything else its name.

    The hash of a folder is of the names and sizes of the files, of small files as a whole, and of safetensors the
    header and the beginning of every tensor: training changes those, while names, sizes and headers stay. Files that
    the index of a sharded checkpoint names count wherever they are.
    """
    path = Path(source)
    if path.is_file():  # a training checkpoint
        return _hash(str(path.parent), ((path.name, *_state(path)),))
    if not path.is_dir():
        return source
    states = [(os.path.relpath(file, path), *_state(file)) for file in _files(path)]
    return _hash(source, tuple(states))


@lru_cache(maxsize=64)
def _hash(folder: str, states: tuple[tuple[str, int, int], ...]) -> str:
    """Hash files; as long as their sizes and times stay, they are read once."""
    digest = hashlib.sha256()
    for name, size, _ in states:
        digest.update(f"{name} {size} ".encode())
        with Path(folder, name).open("rb") as file:
            _add(digest, file, size, is_safetensors=name.endswith(".safetensors"))
    return f"sha256:{digest.hexdigest()[:16]}"


def _add(digest: Any, file: BinaryIO, size: int, *, is_safetensors: bool) -> None:
    if size <= _WHOLE:
        digest.update(file.read())
    elif is_safetensors:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        digest.update(header)
        tensors = {name: each for name, each in json.loads(header).items() if name != "__metadata__"}
        for first, end in sorted(each["data_offsets"] for each in tensors.values()):
            file.seek(8 + length + first)
            digest.update(file.read(min(end - first, _SAMPLE)))
    else:
        file.seek(-_TAIL, os.SEEK_END)
        digest.update(file.read())


def _files(folder: Path) -> list[Path]:
    own = [path for path in folder.iterdir() if path.is_file() and path.suffix in _SUFFIXES]
    named: set[Path] = set()
    for path in own:
        if path.name.endswith(".index.json"):
            files = json.loads(path.read_text(encoding="utf-8")).get("weight_map", {}).values()
            named |= {shard for file in set(files) if (shard := folder / file).is_file()}
    return sorted({*own, *named})


def _state(file: Path) -> tuple[int, int]:
    state = file.stat()
    return state.st_size, state.st_mtime_ns
