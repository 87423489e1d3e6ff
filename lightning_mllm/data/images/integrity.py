"""Whether an image file is whole, as far as its end and its checksums tell."""

from __future__ import annotations

import os
import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from lightning_mllm.data.loading.bad_rows import IMAGE_FILE
from lightning_mllm.errors import DataError

StoredPicture = Path | bytes  # a file, or what a file would hold

_END_MARKERS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
# where the header has the file's length, and how many bytes it leaves out
_LENGTHS = {"WEBP": (4, 8), "BMP": (2, 0)}
_BLOCK = 1 << 20  # bytes that are read at once
# bytes in front of a chunk of a PNG: its length and its name, which is upper case where it matters
_CHUNK_HEAD = 8
# bytes at the end of a file, among which zeros may follow the marker; else the file is decoded
_TAIL = 64


def open_stored_picture(stored: StoredPicture) -> BinaryIO:
    """Return a stream of the bytes of a picture."""
    return stored.open("rb") if isinstance(stored, Path) else BytesIO(stored)


def check_png_sums(stored: StoredPicture, name: str) -> None:
    """Refuse a PNG in which the checksum of a chunk is wrong; Pillow ignores those of pixels.

    Raises:
        DataError: It is wrong, or the file ends within a chunk.
    """
    with open_stored_picture(stored) as file:
        file.seek(8)
        head = file.read(_CHUNK_HEAD)
        while len(head) == _CHUNK_HEAD:
            length, chunk = int.from_bytes(head[:4]), head[4:]
            found = _compute_checksum(file, length, chunk)
            stated = file.read(4)
            if found != int.from_bytes(stated) and chunk[:1].isupper():
                part = f"its part {chunk.decode('latin-1')!r}"
                what = f"truncated within {part}"
                if len(stated) == 4:
                    what = f"damaged, the checksum of {part} is wrong"
                raise DataError(
                    f"{name}: is {what}. Fetch the file again or remove it from the dataset.",
                    IMAGE_FILE,
                )
            if chunk == b"IEND":
                return
            head = file.read(_CHUNK_HEAD)


def ends_as_stated(stored: StoredPicture, image_format: str | None) -> bool:
    """Return whether a file is as long as its header says, or ends with its format's marker."""
    with open_stored_picture(stored) as file:
        length = file.seek(0, os.SEEK_END)
        if image_format in _LENGTHS:
            offset, rest = _LENGTHS[image_format]
            file.seek(offset)
            stated = int.from_bytes(file.read(4), "little")
            return 0 < stated <= length - rest
        marker = _END_MARKERS.get(image_format or "")
        if marker is None:
            return False
        file.seek(max(0, length - _TAIL))
        return file.read().rstrip(b"\0").endswith(marker)


def _compute_checksum(file: BinaryIO, length: int, chunk: bytes) -> int:
    """Read the content of a chunk, and return its checksum."""
    value = zlib.crc32(chunk)
    while length > 0:
        block = file.read(min(length, _BLOCK))
        if not block:
            break
        value = zlib.crc32(block, value)
        length -= len(block)
    return value
