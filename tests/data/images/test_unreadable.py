from pathlib import Path

import pytest
from PIL import Image

from lightning_mllm.data.images.files import open_image_file
from lightning_mllm.data.images.inspection import look_at_image_files
from lightning_mllm.errors import DataError
from tests.data.conftest import picture

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 12345\n"
FILES = {
    b"\n<!DOCTYPE HTML><html>404": "is not an image but a web page (HTML)",
    b"<?xml version='1.0'?>\n<svg xmlns=''/>": "is not an image but a drawing (SVG)",
    POINTER: "is not an image but a git-LFS pointer to it; run `git lfs pull`",
    b'{"error": "rate limit"}': "is not an image but JSON text",
    b"%PDF-1.7 ...": "is not an image but a PDF document",
    b"\0\0\0\x1cftypheic....": (
        "is a picture in the format HEIC, which is not read. BMP, GIF, JPEG, PNG, "
    ),
    b"nothing of the kind": "is not an image that Pillow can read",
}


@pytest.mark.parametrize(("content", "said"), FILES.items(), ids=lambda each: each[:12])
def test_what_is_saved_under_a_pictures_name_is_named(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)

    with pytest.raises(DataError) as caught:
        open_image_file(path)
    (problem,) = look_at_image_files([path])[1].values()

    assert f"a.jpg: {said}" in str(caught.value)
    assert f"a.jpg: {said}" in problem


@pytest.mark.parametrize("name", ["TGA", "ICO", "AVIF", "JPEG2000"])
def test_a_picture_in_a_format_that_is_not_read_is_named_so(tmp_path: Path, name: str) -> None:
    Image.init()
    if name not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {name}")
    path = tmp_path / "a.png"
    picture().save(path, format=name)

    with pytest.raises(
        DataError, match=rf"a\.png: is a picture in the format {name}, which is not read\."
    ):
        open_image_file(path)
