"""Photographs with captions by several people, as rows in LLaVA's format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_mllm.errors import DataError

REQUEST = "Describe the picture in one sentence."
SPLITS = {"train": "train", "dev": "val", "test": "test"}  # Flickr8k's names, and ours

Captions = Mapping[str, Sequence[str]]  # file name of a picture -> its captions


def read_captions(path: Path) -> dict[str, Captions]:
    """Read a JSON object: split -> file name of a picture -> list of captions.

    Returns:
        Split, as we call it -> its captions.

    Raises:
        DataError: The file is missing or has another form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}.") from error
    if not isinstance(content, dict) or not SPLITS.keys() <= content.keys():
        raise DataError(
            f"{path} must hold a JSON object with the keys {', '.join(SPLITS)}, each an object "
            "from the name of a picture to its captions."
        )
    return {ours: content[theirs] for theirs, ours in SPLITS.items()}


def caption_rows(captions: Captions, most: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield one row per caption.

    Args:
        captions: Captions of a split.
        most: How many captions of a picture are used; by default all.
    """
    for image, texts in captions.items():
        for number, text in enumerate(texts[:most]):
            yield make_row(f"{Path(image).stem}#{number}", image, REQUEST, tidy_caption(text))


def make_row(name: str, image: str, question: str, answer: str, kind: str = "") -> dict[str, Any]:
    """Return a row: one question about one picture, and its answer."""
    turns = [("human", f"<image>\n{question}"), ("gpt", answer)]
    row: dict[str, Any] = {
        "id": name,
        "image": image,
        "conversations": [{"from": who, "value": text} for who, text in turns],
    }
    return {**row, "kind": kind} if kind else row


def tidy_caption(text: str) -> str:
    """Return a caption as a sentence: no blank before punctuation, a full stop at the end."""
    for mark in (".", ",", "'", ";", ":", "?", "!"):
        text = text.replace(f" {mark}", mark)
    text = " ".join(text.split()).rstrip(" .")
    return f"{text[:1].upper()}{text[1:]}."
