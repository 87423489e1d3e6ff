"""Opening image files as users have them: rotated, CMYK, transparent, 16-bit, animated, truncated, hostile."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from lightning_mllm.data.images.unreadable import describe_unreadable
from lightning_mllm.data.loading.bad_rows import IMAGE_FILE, BadRows
from lightning_mllm.errors import DataError
from lightning_mllm.types import LazyImage

MAX_PIXELS = 50_000_000  # below Pillow's own limit, whose warning would otherwise be the first sign of a bomb
MAX_SIDE = 10_000  # a padded canvas of this side takes 300 MB
MIN_SIDE = 2

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # what Pillow raises on broken files
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # never EPS, which would start Ghostscript
_END_MARKERS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_LENGTHS = {"WEBP": (4, 8), "BMP": (2, 0)}  # where the header has the file's length, and how many bytes it leaves out
_BLOCK = 1 << 20  # bytes that are read at once
_PART = 8  # bytes in front of a part of a PNG: its length and its name, which is upper case where it matters
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_TAIL = 64  # bytes at the end of a file, among which zeros may follow the marker; else the file is decoded
_SCALED_MODES = ("I", "F")  # more than 8 bits per channel

logger = logging.getLogger(__name__)


def open_image(source: Path | Image.Image | LazyImage, name: str | None = None) -> Image.Image:
    """Open a picture and make it plain 8-bit RGB.

    The EXIF rotation is applied, transparency is laid on white, 16-bit grey is scaled (not clipped), and of an
    animation the first frame is taken.

    Args:
        source: File, or a picture in memory or made on demand.
        name: What errors call it; the path by default.

    Raises:
        DataError: The file is missing, empty, truncated, no image, smaller than 2 pixels on a side, larger than
            `MAX_SIDE` or `MAX_PIXELS`, or of floating-point pixels.
    """
    if isinstance(source, LazyImage):
        source = source.draw()
    if isinstance(source, Image.Image):
        return _decode(source, name or "An image in memory")
    name = name or str(source)
    _check_file(source, name)
    try:
        with Image.open(source, formats=FORMATS) as image:
            return _decode(image, name)
    except _BOMB as error:
        raise _error(_too_large(name, str(error))) from error
    except DataError:
        raise
    except _UNREADABLE as error:
        raise _error(_broken(source, name, error)) from error


Size = tuple[int, int]  # width and height


def check_images(paths: Iterable[Path]) -> dict[Path, Size]:
    """Check image files at set-up: header, size, end, and checksums where there are some.

    Only where these can't tell whether a file is whole, it is decoded.

    Returns:
        Path -> size of the picture, EXIF rotation applied.

    Raises:
        DataError: Some are bad; the message lists the first 20 and their number.
    """
    bad = BadRows()
    sizes, problems = look_at_images(paths)
    bad.titles[IMAGE_FILE] = f"of {len(sizes) + len(problems):,} image files can't be used"
    for problem in problems.values():
        bad.add(_error(problem))
    bad.settle()
    return sizes


def look_at_images(paths: Iterable[Path]) -> tuple[dict[Path, Size], dict[Path, str]]:
    """Do what `check_images` does; return the sizes of sound files, and what is wrong with the others."""
    unique = sorted(set(paths))
    with ThreadPoolExecutor(max_workers=8) as pool:
        results = dict(zip(unique, pool.map(_inspect, unique), strict=True))
    problems = {path: result for path, result in results.items() if isinstance(result, str)}
    sound = {path: result for path, result in results.items() if not isinstance(result, str)}
    animated = [path for path, (_, moves) in sound.items() if moves]
    if animated:
        logger.warning("%d animated images: only the first frame is used (e.g. %s)", len(animated), animated[0])
    return {path: size for path, (size, _) in sound.items()}, problems


def _inspect(path: Path) -> str | tuple[Size, bool]:
    """Return a file's size and whether it is animated, or what is wrong with it."""
    try:
        _check_file(path, str(path))
        with Image.open(path, formats=FORMATS) as image:
            _check_size(image, str(path))
            animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))  # MPO: a phone's JPEG
            size = _upright(image)
            if image.format == "PNG":
                _check_sums(path)
            if image.mode.startswith(_SCALED_MODES) or not _has_end(path, image.format):
                _decode(image, str(path))
    except DataError as error:
        return str(error)
    except _BOMB as error:
        return _too_large(str(path), str(error))
    except _UNREADABLE as error:
        return _broken(path, str(path), error)
    return size, animated


def _check_sums(path: Path) -> None:
    """Refuse a PNG in which a part's checksum is wrong; Pillow does not look at those of the pixels."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(_PART)) == _PART:
            length, name = int.from_bytes(head[:4]), head[4:]
            found, stated = _crc(file, length, name), file.read(4)
            if found != int.from_bytes(stated) and name[:1].isupper():
                part = f"its part {name.decode('latin-1')!r}"
                what = f"damaged, the checksum of {part} is wrong" if len(stated) == 4 else f"truncated within {part}"
                raise _error(f"{path}: is {what}. Fetch the file again or remove it from the dataset.")
            if name == b"IEND":
                return


def _crc(file: BinaryIO, length: int, name: bytes) -> int:
    value = zlib.crc32(name)
    while length > 0 and (block := file.read(min(length, _BLOCK))):
        value, length = zlib.crc32(block, value), length - len(block)
    return value


def _upright(image: Image.Image) -> Size:
    width, height = image.size
    if "exif" not in image.info:  # asking a PNG without it would decode the file
        return width, height
    return (height, width) if image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS else (width, height)


def _has_end(path: Path, image_format: str | None) -> bool:
    """Return whether a file is as long as its header says, or has the marker that its format ends with."""
    length = path.stat().st_size
    with path.open("rb") as file:
        if image_format in _LENGTHS:
            offset, rest = _LENGTHS[image_format]
            file.seek(offset)
            said = int.from_bytes(file.read(4), "little")
            return 0 < said <= length - rest
        marker = _END_MARKERS.get(image_format or "")
        if marker is None:
            return False
        file.seek(max(0, length - _TAIL))
        return file.read().rstrip(b"\0").endswith(marker)


def _check_file(path: Path, name: str) -> None:
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise _error(f"{name}: {found}; an image file was expected. Correct the path.")
    if path.stat().st_size == 0:
        raise _error(f"{name}: has zero bytes. Fetch the file again or remove it from the dataset.")


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise _error(
            f"{name}: is {width} x {height} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed. "
            "Remove it from the dataset (it is often a failed download)."
        )
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise _error(_too_large(name, f"{width} x {height} pixels"))


def _decode(image: Image.Image, name: str) -> Image.Image:
    _check_size(image, name)
    if image.mode.startswith(_SCALED_MODES):
        image = _to_8_bit(image, name)
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bit(image: Image.Image, name: str) -> Image.Image:
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise _error(
            f"{name}: has pixels of mode {image.mode!r} from {pixels.min()} to {pixels.max()}, whose scale is unknown. "
            "Convert the file to 8 or 16 bits per channel."
        )
    scaled = Image.fromarray((pixels.astype(np.uint32) * 255 // 65535).astype(np.uint8))
    scaled.info = dict(image.info)
    scaled.getexif().update(image.getexif())
    return scaled


def _error(message: str) -> DataError:
    return DataError(message, IMAGE_FILE)


def _too_large(name: str, found: str) -> str:
    return (
        f"{name}: is too large ({found}); at most {MAX_SIDE:,} pixels on a side and {MAX_PIXELS:,} in all are read, "
        "since a small file can unpack to more memory than there is. Scale it down."
    )


def _broken(path: Path, name: str, error: Exception) -> str:
    if not isinstance(error, UnidentifiedImageError):
        return f"{name}: {error}. Fetch the file again or remove it from the dataset."
    foreign = describe_unreadable(path)
    if foreign is None:
        return f"{name}: is not an image that Pillow can read. Fetch the file again or remove it from the dataset."
    return f"{name}: is {foreign}. {', '.join(FORMATS)} are read: convert it, fetch it again, or remove it."
