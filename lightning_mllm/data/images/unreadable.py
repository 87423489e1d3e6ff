"""What a file is that is called a picture and can't be read as one."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

_HEAD = 512  # bytes that are looked at
_BEGINNINGS = {
    b"version https://git-lfs.github.com": "a git-LFS pointer to it; run `git lfs pull`",
    b"<!doctype html": "a web page (HTML), often a failed download",
    b"<html": "a web page (HTML), often a failed download",
    b"<svg": "a drawing (SVG)",
    b"%pdf": "a PDF document",
    b"{": "JSON text, often a failed download",
    b"pk\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
}
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"avif": "AVIF", b"avis": "AVIF"}  # behind "ftyp"
_ERRORS = (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError, Image.DecompressionBombWarning)


def describe_unreadable(path: Path) -> str | None:
    """Return what a file is that none of the formats that are read takes, to stand behind "is"; None if unknown."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
        return _other(_BRANDS[head[8:12]])
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, what in _BEGINNINGS.items():
        if text.startswith(beginning):
            return f"not an image but {what}"
    if b"<svg" in text or b"<html" in text:
        return f"not an image but {_BEGINNINGS[b'<svg' if b'<svg' in text else b'<html']}"
    try:
        with Image.open(path) as image:  # reads the header alone, so that nothing of a hostile file is run
            return _other(str(image.format))
    except _ERRORS:
        return None


def _other(name: str) -> str:
    return f"a picture in the format {name}, which is not read"
