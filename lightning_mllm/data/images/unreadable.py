"""What a file is that has the name of a picture and can't be read as one."""

from __future__ import annotations

from PIL import Image

from lightning_mllm.data.images.integrity import StoredPicture, open_stored_picture

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
_BRANDS = {  # they follow "ftyp"
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"mif1": "HEIF",
    b"avif": "AVIF",
    b"avis": "AVIF",
}
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_ERRORS = (OSError, SyntaxError, ValueError, TypeError, *_BOMB)


def describe_unreadable(stored: StoredPicture) -> str | None:
    """Return what an unreadable file is, in words to follow "is"; None if that is unknown."""
    with open_stored_picture(stored) as file:
        head = file.read(_HEAD)
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
        return _describe_format(_BRANDS[head[8:12]])
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, what in _BEGINNINGS.items():
        if text.startswith(beginning):
            return f"not an image but {what}"
    if b"<svg" in text or b"<html" in text:
        return f"not an image but {_BEGINNINGS[b'<svg' if b'<svg' in text else b'<html']}"
    try:
        # reads the header alone: a hostile file runs nothing
        with open_stored_picture(stored) as file, Image.open(file) as image:
            return _describe_format(str(image.format))
    except _ERRORS:
        return None


def _describe_format(name: str) -> str:
    return f"a picture in the format {name}, which is not read"
