"""Whether an image file is whole, as far as its end and its checksums tell."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

from lightning_mllm.data.loading.bad_rows import IMAGE_FILE
from lightning_mllm.errors import DataError

_END_MARKERS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
# where the header has the file's length, and how many bytes it leaves out
_LENGTHS = {"WEBP": (4, 8), "BMP": (2, 0)}
_BLOCK = 1 << 20  # bytes that are read at once
# bytes in front of a chunk of a PNG: its length and its name, which is upper case where it matters
_CHUNK_HEAD = 8
# bytes at the end of a file, among which zeros may follow the marker; else the file is decoded
_TAIL = 64


def check_png_sums(path: Path) -> None:
    """Refuse a PNG in which the checksum of a chunk is wrong; Pillow ignores those of pixels."""
    with path.open("rb") as file:
        file.seek(8)
        head = file.read(_CHUNK_HEAD)
        while len(head) == _CHUNK_HEAD:
            length, name = int.from_bytes(head[:4]), head[4:]
            found = _compute_checksum(file, length, name)
            stated = file.read(4)
            if found != int.from_bytes(stated) and name[:1].isupper():
                part = f"its part {name.decode('latin-1')!r}"
                what = f"truncated within {part}"
                if len(stated) == 4:
                    what = f"damaged, the checksum of {part} is wrong"
                raise DataError(
                    f"{path}: is {what}. Fetch the file again or remove it from the dataset.",
                    IMAGE_FILE,
                )
            if name == b"IEND":
                return
            head = file.read(_CHUNK_HEAD)


def _compute_checksum(file: BinaryIO, length: int, name: bytes) -> int:
    """Read the content of a chunk, and return its checksum."""
    value = zlib.crc32(name)
    while length > 0:
        block = file.read(min(length, _BLOCK))
        if not block:
            break
        value = zlib.crc32(block, value)
        length -= len(block)
    return value


def ends_as_stated(path: Path, image_format: str | None) -> bool:
    """Return whether a file is as long as its header says, or ends with its format's marker."""
    length = path.stat().st_size
    with path.open("rb") as file:
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
