"""Reads a W&B run file (`run-<id>.wandb`): protobuf records in a LevelDB log, as `wandb sync` reads them."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK, _FILE_HEADER, _RECORD_HEADER = 32768, 7, 7
_FULL, _LAST = 1, 4
_PATIENCE = 60  # seconds


def read_records(path: Path) -> Iterator[Any]:
    """Yield the records of a run file."""
    data = path.read_bytes()
    assert data[:4] in (b":W&B", b"")
    position, parts = _FILE_HEADER, b""
    while position + _RECORD_HEADER <= len(data):
        if _BLOCK - position % _BLOCK < _RECORD_HEADER:  # a block's end is filled up
            position += _BLOCK - position % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _RECORD_HEADER])
        position += _RECORD_HEADER
        if position + length > len(data):  # it is being written
            return
        parts += data[position : position + length]
        position += length
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  # generated code
            record.ParseFromString(parts)
            parts = b""
            yield record


def run_file(run_dir: Path) -> Path:
    """Return the one run file below a folder, when all of it is there: a process of W&B's own writes it."""
    (found,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    given_up = time.monotonic() + _PATIENCE
    while "exit" not in (record.WhichOneof("record_type") for record in read_records(found)):
        assert time.monotonic() < given_up, f"{found} has no end: was the run finished?"
        time.sleep(0.1)
    return found


def history(run_dir: Path) -> list[dict[str, Any]]:
    """Return what was logged, one dict per step."""
    rows = []
    for record in read_records(run_file(run_dir)):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def config(run_dir: Path) -> dict[str, Any]:
    """Return the logged configuration."""
    values: dict[str, Any] = {}
    for record in read_records(run_file(run_dir)):
        kind = record.WhichOneof("record_type")
        if kind in ("config", "run"):
            updates = record.config.update if kind == "config" else record.run.config.update
            values |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}
    return values


def run_record(run_dir: Path) -> Any:
    """Return the record that names the run."""
    return next(r.run for r in read_records(run_file(run_dir)) if r.WhichOneof("record_type") == "run")
