"""Unpacks the photographs, and writes captions and questions as files in LLaVA's format.

Run it: `python -m lightning_mllm.real.prepare PARTS OUTPUT`.
"""

from __future__ import annotations

import argparse
import json
import logging
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from lightning_mllm.errors import DataError
from lightning_mllm.progress import track
from lightning_mllm.real.captions import (
    Captions,
    caption_rows,
    make_row,
    read_captions,
    tidy_caption,
)
from lightning_mllm.real.questions import VOCABULARY, make_questions
from lightning_mllm.store.files import replacing_folder, write_text
from lightning_mllm.store.seeds import draw_by_seed

CAPTIONS, PICTURES = "flickr8k_captions.json", "flickr8k_images.zip"
FOLDERS = {  # data of the projection study: archive of a folder per class
    "flowers": "flowers.zip",
    "leaves": "leaves_plantvillage_apple.zip",
    "textures": "textures_dtd10.zip",
    "lesions": "lesions_ham10000.zip",
}
SEED = 0
_GREY_SIDE = 128  # pixels
_FEW = 160  # questions of a kind

logger = logging.getLogger(__name__)


def prepare(parts: Path, output: Path) -> None:
    """Write what is not there yet.

    `output` gets `pictures/`, `captions/<split>.json` (all captions in training, the first of each
    picture else), `references/<split>.json` (all captions of each of those samples),
    `questions/<split>.json`, `questions/few.json` (some test questions of each kind), a folder of
    classes per data of the projection study, `objects.txt` (the objects that captions name), and
    `grey/`: grey pictures with the names of those of validation and test. Files that would not
    change are not touched.

    Args:
        parts: Folder with the archives and the captions.
        output: Folder for them; made if it is not there.

    Raises:
        DataError: An archive or the captions are missing.
    """
    unpack(parts / PICTURES, output / "pictures")
    for name, archive in FOLDERS.items():
        unpack(parts / archive, output / name)
    _write_changed(output / "objects.txt", VOCABULARY.read_text(encoding="utf-8"))
    splits = read_captions(parts / CAPTIONS)
    _draw_grey_pictures(output / "grey", [*splits["val"], *splits["test"]])
    for split, captions in splits.items():
        texts = caption_rows(captions, most=None if split == "train" else 1)
        _write_rows(output / "captions" / f"{split}.json", texts)
        if split != "train":
            references = {}
            for row in caption_rows(captions, most=1):
                references[row["id"]] = [*map(tidy_caption, captions[row["image"]])]
            text = json.dumps(references, indent=0) + "\n"
            _write_changed(output / "references" / f"{split}.json", text)
        questions = list(_question_rows(captions))
        _write_rows(output / "questions" / f"{split}.json", questions)
        if split == "test":
            _write_rows(output / "questions" / "few.json", _draw_of_each_kind(questions))


def _question_rows(captions: Captions) -> Iterator[dict[str, Any]]:
    """Yield a row per question, with its number and picture as its id."""
    for number, asked in enumerate(make_questions(captions, SEED)):
        name = f"{number}-{Path(asked.image).stem}"
        yield make_row(name, asked.image, asked.text, asked.answer, asked.kind)


def _draw_of_each_kind(questions: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield at most `_FEW` questions of each kind, drawn by their ids, in order."""
    of_kinds = defaultdict[str, list[str]](list)
    rows = list(questions)
    for row in rows:
        of_kinds[row["kind"]].append(row["id"])
    drawn: set[str] = set()
    for names in of_kinds.values():
        drawn |= draw_by_seed(names, _FEW, SEED)
    yield from (row for row in rows if row["id"] in drawn)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive into a folder, unless the folder is there.

    Raises:
        DataError: The archive is missing, or a file in it would leave the folder.
    """
    if folder.exists():
        return
    if not archive.is_file():
        raise DataError(f"{archive} is missing; docs/real_llm.md says where the parts come from.")
    with zipfile.ZipFile(archive) as content, replacing_folder(folder) as unpacked:
        for name in track(content.namelist(), f"Unpacking {archive.name}"):
            content.extract(name, unpacked)


def _draw_grey_pictures(folder: Path, names: Iterable[str]) -> None:
    """Draw a grey picture in the place of each, for a model that shall see none."""
    if folder.exists():
        return
    with replacing_folder(folder) as drawn:
        for name in names:
            Image.new("RGB", (_GREY_SIDE, _GREY_SIDE), "grey").save(drawn / name)


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    _write_changed(path, json.dumps(list(rows), indent=0) + "\n")


def _write_changed(path: Path, text: str) -> None:
    """Write a file unless it has this text, so that whoever reads it finds it unchanged."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path, help="Folder with the archives and the captions.")
    parser.add_argument("output", type=Path, help="Folder for pictures and rows.")
    options = parser.parse_args()
    prepare(options.parts, options.output)


if __name__ == "__main__":
    main()
