"""Which settings made a folder's files, so that files of different settings are never mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_mllm.errors import ConfigError
from lightning_mllm.store.files import read_json, write_text

MANIFEST = "making.json"

Change = tuple[Any, Any]  # what a setting was, and what it is now


def manifest_digest(parts: Iterable[str]) -> str:
    """Return a short hash of texts, joined without a separator."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode("utf-8", "surrogatepass"))
    return found.hexdigest()[:16]


def find_manifest_changes(then: Any, now: Any, name: str = "") -> dict[str, Change]:
    """Return the settings that differ, by their dotted names; a missing setting counts as None."""
    if not (isinstance(then, Mapping) and isinstance(now, Mapping)):
        return {} if then == now else {name: (then, now)}
    changes: dict[str, Change] = {}
    for key in {**then, **now}:
        changes |= find_manifest_changes(
            then.get(key), now.get(key), f"{name}.{key}" if name else key
        )
    return changes


def describe_manifest_changes(changes: Mapping[str, Change]) -> str:
    """Return changes as a part of a sentence."""
    return "; ".join(f"{name} was {then!r}, is {now!r}" for name, (then, now) in changes.items())


def claim_folder_in_manifest(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note in `making.json` which settings make a folder's files, or check them against that note.

    Args:
        folder: The folder; it must exist.
        settings: All settings that decide the content of the files. A value that JSON has no type
            for counts as its text.

    Raises:
        ConfigError: The files in the folder were created with different settings.
        DataError: `making.json` can't be read.
    """
    path, now = folder / MANIFEST, json.loads(json.dumps(settings, default=str))
    if not path.is_file():
        write_text(path, json.dumps(now, indent=2) + "\n")
    elif changes := find_manifest_changes(read_json(path), now):
        raise ConfigError(
            f"The files in {folder} were created with different settings: "
            f"{describe_manifest_changes(changes)}. Use the settings and the weights that they "
            "were created with, or start again in another folder."
        )
