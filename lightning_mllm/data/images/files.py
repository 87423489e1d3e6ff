"""Opens image files as users have them: rotated, transparent, 16-bit, truncated, hostile."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from lightning_mllm.data.images.geometry import Size
from lightning_mllm.data.images.integrity import (
    StoredPicture,
    check_png_sums,
    ends_as_stated,
    open_stored_picture,
)
from lightning_mllm.data.images.unreadable import describe_unreadable
from lightning_mllm.data.loading.bad_rows import IMAGE_FILE
from lightning_mllm.errors import DataError
from lightning_mllm.types import LazyImage, Sample

# below Pillow's own limit, whose warning would otherwise be the first sign of a bomb
MAX_PIXELS = 50_000_000
MAX_SIDE = 10_000  # a padded canvas of this side takes 300 MB
MIN_SIDE = 2

# what Pillow raises on broken files
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# never EPS, which would start Ghostscript
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_SCALED_MODES = ("I", "F")  # more than 8 bits per channel


def list_image_files(sample: Sample) -> list[Path]:
    """Return the images of a sample that are files."""
    return [image for image in sample.images if isinstance(image, Path)]


def open_image_file(
    source: StoredPicture | Image.Image | LazyImage, name: str | None = None
) -> Image.Image:
    """Open a picture and make it plain 8-bit RGB.

    The EXIF rotation is applied, transparency is laid on white, 16-bit grey is scaled (not
    clipped), and the first frame of an animation is taken.

    Args:
        source: A file or what it holds, or a picture in memory or made on demand.
        name: What errors call it; the path by default.

    Raises:
        DataError: The file is missing, empty, truncated or not an image, it is smaller than 2
            pixels on a side or larger than `MAX_SIDE` or `MAX_PIXELS`, or its pixels are
            floating-point numbers.
    """
    if isinstance(source, LazyImage):
        source = source.draw()
    if isinstance(source, Image.Image):
        return _decode(source, name or "An image in memory")
    name = name or _name_stored(source)
    _check_stored(source, name)
    try:
        with open_stored_picture(source) as file, Image.open(file, formats=FORMATS) as image:
            return _decode(image, name)
    except _BOMB as error:
        raise _make_error(_describe_too_large(name, str(error))) from error
    except DataError:
        raise
    except _UNREADABLE as error:
        raise _make_error(_describe_broken(source, name, error)) from error


def find_image_size(image: Path | Image.Image | LazyImage) -> Size:
    """Return the size of a picture, EXIF rotation applied; of a file only the header is read."""
    if isinstance(image, LazyImage):
        return image.size
    if isinstance(image, Image.Image):
        return _find_upright_size(image)
    with Image.open(image, formats=FORMATS) as opened:
        return _find_upright_size(opened)


def inspect_image_file(stored: StoredPicture, name: str | None = None) -> str | tuple[Size, bool]:
    """Return a picture's size and whether it is animated, or what is wrong with it.

    Looked at are header, size, end, and checksums where there are some; a file is decoded only
    where these can't tell whether it is whole.

    Args:
        stored: A file, or what it holds.
        name: What is wrong begins with it; the path by default.
    """
    name = name or _name_stored(stored)
    try:
        _check_stored(stored, name)
        with open_stored_picture(stored) as file, Image.open(file, formats=FORMATS) as image:
            _check_size(image, name)
            is_phone_jpeg = image.format == "MPO"
            animated = not is_phone_jpeg and bool(getattr(image, "is_animated", False))
            size = _find_upright_size(image)
            if image.format == "PNG":
                check_png_sums(stored, name)
            if image.mode.startswith(_SCALED_MODES) or not ends_as_stated(stored, image.format):
                _decode(image, name)
    except DataError as error:
        return str(error)
    except _BOMB as error:
        return _describe_too_large(name, str(error))
    except _UNREADABLE as error:
        return _describe_broken(stored, name, error)
    return size, animated


def _find_upright_size(image: Image.Image) -> Size:
    """Return the size of a picture with its EXIF rotation applied."""
    width, height = image.size
    if "exif" not in image.info:  # to ask a PNG without it would decode the file
        return width, height
    if image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS:
        return height, width
    return width, height


def _name_stored(stored: StoredPicture) -> str:
    return str(stored) if isinstance(stored, Path) else "A stored image"


def _check_stored(stored: StoredPicture, name: str) -> None:
    """Refuse a path without a file, and an empty file."""
    if isinstance(stored, Path) and not stored.is_file():
        found = "is a folder" if stored.is_dir() else "does not exist"
        raise _make_error(f"{name}: {found}; an image file was expected. Correct the path.")
    if not (stored.stat().st_size if isinstance(stored, Path) else len(stored)):
        raise _make_error(
            f"{name}: has zero bytes. Fetch the file again or remove it from the dataset."
        )


def _check_size(image: Image.Image, name: str) -> None:
    """Refuse a picture that is too small or too large."""
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise _make_error(
            f"{name}: is {width} x {height} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed. "
            "Remove it from the dataset (it is often a failed download)."
        )
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise _make_error(_describe_too_large(name, f"{width} x {height} pixels"))


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Decode a picture to upright 8-bit RGB."""
    _check_size(image, name)
    if image.mode.startswith(_SCALED_MODES):
        image = _scale_to_8_bits(image, name)
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _scale_to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale 16-bit pixels to 8 bits, and keep the picture's metadata."""
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise _make_error(
            f"{name}: has pixels of mode {image.mode!r} from {pixels.min()} to {pixels.max()}, "
            "whose scale is unknown. Convert the file to 8 or 16 bits per channel."
        )
    scaled = Image.fromarray((pixels.astype(np.uint32) * 255 // 65535).astype(np.uint8))
    scaled.info = dict(image.info)
    scaled.getexif().update(image.getexif())
    return scaled


def _make_error(message: str) -> DataError:
    return DataError(message, IMAGE_FILE)


def _describe_too_large(name: str, found: str) -> str:
    return (
        f"{name}: is too large ({found}); at most {MAX_SIDE:,} pixels on a side and "
        f"{MAX_PIXELS:,} in all are read, since a small file can unpack to more memory than there "
        "is. Scale it down."
    )


def _describe_broken(stored: StoredPicture, name: str, error: Exception) -> str:
    """Return what is wrong with a file that Pillow can't read."""
    if not isinstance(error, UnidentifiedImageError):
        return f"{name}: {error}. Fetch the file again or remove it from the dataset."
    found = describe_unreadable(stored)
    if found is None:
        return (
            f"{name}: is not an image that Pillow can read. Fetch the file again or remove it from "
            "the dataset."
        )
    formats = ", ".join(FORMATS)
    return f"{name}: is {found}. {formats} are read: convert it, fetch it again, or remove it."
