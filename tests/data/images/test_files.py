import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from lightning_mllm.data.images import files
from lightning_mllm.data.images.files import open_image_file
from lightning_mllm.data.images.geometry import Size
from lightning_mllm.data.images.inspection import look_at_image_files
from lightning_mllm.data.loading.bad_rows import IMAGE_FILE, BadRows
from lightning_mllm.errors import DataError
from tests.data.conftest import picture

ROTATED_BY_90 = 6  # EXIF orientation: the camera lay on its side


def saved(folder: Path, name: str, image: Image.Image | None = None, **options: Any) -> Path:
    path = folder / name
    (image or picture()).save(path, **options)
    return path


def truncated(folder: Path, name: str) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    path = saved(folder, name, Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def check_images(paths: Iterable[Path]) -> dict[Path, Size]:
    """Do what set-up does with image files: refuse the bad ones in one message."""
    sizes, problems = look_at_image_files(paths)
    bad = BadRows()
    bad.count_image_files(len(sizes) + len(problems))
    for problem in problems.values():
        bad.add(DataError(problem, IMAGE_FILE))
    bad.settle()
    return sizes


class TestOpening:
    @pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "LA", "RGBA", "PA"])
    def test_every_mode_becomes_rgb(self, mode: str) -> None:
        opened = open_image_file(
            Image.new("L", (6, 4), 255)
            .convert("RGB")
            .convert(mode if mode not in {"LA", "PA"} else "L")
            .convert(mode)
        )

        assert opened.mode == "RGB"
        assert opened.size == (6, 4)
        assert opened.getpixel((0, 0)) == (255, 255, 255)

    def test_cmyk_files_keep_their_colour(self, tmp_path: Path) -> None:
        path = saved(tmp_path, "a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)))

        red, green, blue = np.asarray(open_image_file(path))[8, 8].tolist()

        assert red > 200
        assert max(green, blue) < 60

    def test_transparency_is_laid_on_white(self, tmp_path: Path) -> None:
        path = saved(tmp_path, "a.png", Image.new("RGBA", (4, 4), (255, 0, 0, 0)))
        palette = Image.new("P", (4, 4), 0)
        palette.putpalette([10, 20, 30])
        with_index = saved(tmp_path, "b.png", palette, transparency=0)

        assert open_image_file(path).getpixel((0, 0)) == (255, 255, 255)
        assert open_image_file(with_index).getpixel((0, 0)) == (255, 255, 255)

    def test_16_bits_are_scaled_not_clipped(self, tmp_path: Path) -> None:
        pixels = np.array([[0, 32768], [65535, 257]], dtype=np.uint16)
        path = saved(tmp_path, "a.png", Image.fromarray(pixels))

        assert np.asarray(open_image_file(path))[..., 0].tolist() == [[0, 127], [255, 1]]

    def test_pixels_of_unknown_scale_are_refused(self) -> None:
        with pytest.raises(DataError, match=r"mode 'F' from 0\.0 to 0\.0, whose scale is unknown"):
            open_image_file(Image.new("F", (4, 4)))

    def test_the_exif_rotation_is_applied(self, tmp_path: Path) -> None:
        image = picture(40, 20)
        exif = image.getexif()
        exif[0x0112] = ROTATED_BY_90
        path = saved(tmp_path, "a.jpg", image, exif=exif)

        assert open_image_file(path).size == (20, 40)

    def test_of_an_animation_the_first_frame_is_taken(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        path = saved(tmp_path, "a.gif", frames[0], save_all=True, append_images=frames[1:])

        assert open_image_file(path).getpixel((0, 0)) == (255, 0, 0)

    def test_a_picture_in_memory_is_not_changed(self) -> None:
        image = picture()
        open_image_file(image).putpixel((0, 0), (9, 9, 9))
        assert image.getpixel((0, 0)) == (0, 0, 0)


def bad_files(folder: Path) -> dict[str, Path]:
    empty, text = folder / "empty.jpg", folder / "text.png"
    empty.touch()
    text.write_text("<html>not found</html>")
    return {
        "has zero bytes": empty,
        "is not an image": text,
        "truncated": truncated(folder, "cut.jpg"),
        "cut.png": truncated(folder, "cut.png"),
        "is 1 x 1 pixels": saved(folder, "dot.png", Image.new("RGB", (1, 1))),
        r"is too large \(30000 x 10 pixels\)": saved(
            folder, "wide.png", Image.new("L", (30_000, 10))
        ),
        "does not exist": folder / "gone.png",
        "is a folder": folder,
    }


class TestBadFiles:
    def test_each_is_refused_with_its_name_and_the_reason(self, tmp_path: Path) -> None:
        for reason, path in bad_files(tmp_path).items():
            with pytest.raises(DataError, match=reason) as caught:
                open_image_file(path)
            assert path.name in str(caught.value)

    def test_all_are_reported_at_once(self, tmp_path: Path) -> None:
        files = bad_files(tmp_path)

        with pytest.raises(DataError, match="8 of 9 image files can't be used") as caught:
            check_images([*files.values(), saved(tmp_path, "good.jpg")])

        assert all(path.name in str(caught.value) for path in files.values())
        assert "good.jpg" not in str(caught.value)

    def test_of_many_the_first_twenty_are_listed(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"(?s)30 of 30 .*\.\.\. and 10 more"):
            check_images([tmp_path / f"{k}.png" for k in range(30)])

    def test_a_decompression_bomb_is_refused_from_its_header(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = saved(tmp_path, "a.png", picture(60, 60))
        monkeypatch.setattr(
            Image, "MAX_IMAGE_PIXELS", 1000
        )  # what Pillow itself refuses beyond twice

        with pytest.raises(DataError, match=r"a\.png: is too large"):
            open_image_file(path)
        with pytest.raises(DataError, match=r"a\.png: is too large"):
            check_images([path])

    def test_the_number_of_pixels_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "MAX_PIXELS", 100)
        with pytest.raises(DataError, match="is too large"):
            open_image_file(picture(20, 20))


class TestChecking:
    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "a.tif"])
    def test_sound_files_pass(self, tmp_path: Path, name: str) -> None:
        check_images([saved(tmp_path, name)])

    def test_bytes_behind_the_end_are_no_defect(self, tmp_path: Path) -> None:
        path = saved(tmp_path, "a.jpg")
        path.write_bytes(path.read_bytes() + bytes(500))

        check_images([path])

    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp"])
    def test_sound_files_are_not_decoded(
        self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = saved(tmp_path, name)
        monkeypatch.setattr(ImageFile.ImageFile, "load", None)
        check_images([path])

    def test_sizes_are_those_that_a_viewer_shows(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = ROTATED_BY_90
        plain, turned = saved(tmp_path, "a.png"), saved(tmp_path, "b.jpg", exif=exif)

        assert check_images([plain, turned]) == {plain: (40, 30), turned: (30, 40)}
        assert open_image_file(turned).size == (30, 40)

    def test_no_other_program_is_started_for_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n"
        )

        for use in (open_image_file, lambda path: check_images([path])):
            with pytest.raises(
                DataError, match=r"a\.png: is a picture in the format EPS, which is not read"
            ):
                use(path)

    def test_pixels_of_unknown_scale_show_at_set_up(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"a\.tif: has pixels of mode 'F'"):
            check_images([saved(tmp_path, "a.tif", Image.new("F", (8, 8)))])

    def test_animations_are_reported(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        path = saved(tmp_path, "a.gif", frames[0], save_all=True, append_images=frames[1:])

        with caplog.at_level(logging.WARNING):
            check_images([path, saved(tmp_path, "b.png")])

        assert "1 animated images: only the first frame is used" in caplog.text


class TestDamage:
    """A file whose header and end are sound, but not what lies between."""

    @pytest.mark.parametrize("offset", [0.3, 0.6, 0.9])
    def test_in_a_png_shows_in_its_checksums(self, tmp_path: Path, offset: float) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
        path = saved(tmp_path, "a.png", Image.fromarray(noise))
        content = bytearray(path.read_bytes())
        content[int(offset * len(content))] ^= 0xFF
        path.write_bytes(content)

        with pytest.raises(
            DataError, match=r"a\.png: is damaged, the checksum of its part 'IDAT' is wrong"
        ):
            check_images([path])

    def test_in_a_gif_shows_when_it_is_decoded(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (60, 60), dtype=np.uint8)
        path = saved(tmp_path, "a.gif", Image.fromarray(noise))
        content = bytearray(path.read_bytes())
        content[1500:1600] = bytes(100)
        path.write_bytes(content)

        with pytest.raises(DataError, match=r"1 of 1 image files can't be used:\n.*a\.gif"):
            check_images([path])

    def test_what_set_up_lets_pass_is_opened_or_named(self, tmp_path: Path) -> None:
        draw = np.random.default_rng(0)
        noise = Image.fromarray(draw.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        decided = {".png", ".gif", ".tif", ".ppm"}  # whether they are sound is told at set-up
        for k in range(150):
            suffix = ("jpg", "webp", "bmp", *(each[1:] for each in sorted(decided)))[k % 7]
            path = saved(tmp_path, f"{k}.{suffix}", noise)
            content = bytearray(path.read_bytes())
            for place in draw.integers(0, len(content), draw.integers(1, 6)):
                content[place] = draw.integers(256)
            path.write_bytes(content[: draw.integers(1, len(content))] if k % 3 == 0 else content)
            sizes, problems = look_at_image_files([path])
            try:
                opened = open_image_file(path)
            except DataError:
                assert path in problems or path.suffix not in decided
            else:
                assert path in problems or sizes[path] == opened.size
