"""Texts without pictures, from files and from the samples of a dataset."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample

_PLACEHOLDER = "<image>"
_TURNS = {"conversations": "value", "messages": "content"}  # key of a row -> key of its texts


def read_plain_texts(path: Path) -> list[str]:
    """Return the texts of a file: a line each, or the turns and captions of a JSON file.

    A JSON file (`.json`, `.jsonl`) has rows with `conversations` or `messages`, as `LlavaJson`
    reads them, with `caption` or `text`, or is a list of texts.

    Raises:
        DataError: There is no such file, it is JSON but no list, or no text is in it.
    """
    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            rows: Any = [json.loads(line) for line in content.splitlines() if line.strip()]
        else:
            rows = json.loads(content) if path.suffix == ".json" else content.splitlines()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} can't be read as texts ({error}). Name a text file with a text per line, or a "
            "JSON file of conversations."
        ) from error
    if not isinstance(rows, list):
        keys = f"an object with {', '.join(map(repr, rows))}" if isinstance(rows, dict) else "not"
        raise DataError(
            f"{path} must be a JSON list of rows with conversations, messages, caption or text, "
            f"but is {keys}. Write its list of rows into a file (COCO captions: annotations)."
        )
    texts = [text for row in rows for text in _list_texts(row)]
    if not texts:
        raise DataError(
            f"{path} holds no text. A text file has a text per line; a JSON file is a list of rows "
            "with conversations, messages, caption or text."
        )
    return texts


def list_sample_texts(samples: Iterable[Sample]) -> list[str]:
    """Return what is said in the conversations of samples, each turn as a text of its own."""
    texts = []
    for sample in samples:
        for turn in sample.conversation:
            if text := turn.text.strip():
                texts.append(text)
    return texts


def _list_texts(row: Any) -> Iterator[str]:
    """Yield the texts of a row."""
    if isinstance(row, str):
        if text := row.replace(_PLACEHOLDER, " ").strip():
            yield text
    elif isinstance(row, dict):
        for key, inside in _TURNS.items():
            for turn in row.get(key) or ():
                yield from _list_texts(turn.get(inside) if isinstance(turn, dict) else turn)
        for key in ("caption", "text"):
            yield from _list_texts(row.get(key))
    elif isinstance(row, list):
        for each in row:
            yield from _list_texts(each)
