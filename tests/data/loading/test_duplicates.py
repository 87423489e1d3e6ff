from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_mllm.data import ImageFolder
from lightning_mllm.data.loading.duplicates import link_duplicate_samples
from lightning_mllm.data.loading.equal_files import find_duplicate_files
from lightning_mllm.data.loading.lazy import LazySamples
from lightning_mllm.types import LazyImage, Sample
from tests.data.conftest import picture
from tests.data.loading.test_datamodule import Memory


def files(folder: Path, *contents: bytes) -> list[Path]:
    paths = [folder / f"{number}.jpg" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def test_files_are_copies_if_all_their_bytes_are_equal(tmp_path: Path) -> None:
    end = bytes(2000)
    found = files(
        tmp_path, b"a" + end, b"b" + end, b"a" + end, b"ab" + end, b"", b"", b"b" + end, b"x", b"y"
    )

    groups = find_duplicate_files([*found, tmp_path / "absent.jpg", found[0]])

    assert [[int(path.stem) for path in group] for group in groups] == [[0, 2], [1, 6], [4, 5]]


def test_samples_are_linked_by_files_and_by_the_name_of_their_picture() -> None:
    a, b, c, d = map(Path, "abcd")
    shown = [[a], [], [b], [c], [], [a, d], [b, c], [], [d]]
    named = [None, "x", None, None, None, None, None, "x", None]
    samples = [
        Sample(id="", images=images, picture=name)
        for images, name in zip(shown, named, strict=True)
    ]

    assert link_duplicate_samples(samples) == [[0, 5, 8], [1, 7], [2, 3, 6], [4]]
    assert link_duplicate_samples([]) == []


def test_samples_are_linked_with_their_partners_and_those_that_share_their_picture() -> None:
    partners = {"0": "1", "3": "2", "5": "absent"}
    samples = [
        Sample(id=name, images=[], picture=picture, partner=partners.get(name))
        for name, picture in zip("012345", "abcdbe", strict=True)
    ]

    assert link_duplicate_samples(samples) == [[0, 1, 4], [2, 3], [5]]


class TestWarnings:
    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.files = [tmp_path / f"{k}.png" for k in range(9)]
        for k, path in enumerate(self.files):
            picture(30 + k, 20).save(path)
        (tmp_path / "copy.png").write_bytes(self.files[0].read_bytes())
        self.copy = tmp_path / "copy.png"

    def module(self, checkpoint: str, train: Sequence[Path], other: Sequence[Path]) -> Memory:
        def labelled(paths: Sequence[Path]) -> list[Sample]:
            return [Sample(id=path.stem, images=[path], label="two") for path in paths]

        return Memory(labelled(train), labelled(other), checkpoint=checkpoint)

    def test_a_file_in_two_splits_is_said_once_at_fit_and_at_test(
        self, tiny_llava: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        module = self.module(tiny_llava, self.files[:8], [*self.files[1:], self.copy])

        module.setup("fit")

        (record,) = caplog.records
        assert (
            "8 of the 9 samples of the 'val' split have a picture that the 'train' split has, too"
            in record.getMessage()
        )
        assert "val-1 (in train: 1), val-2 (in train: 2)" in record.getMessage()
        assert "val-5 (in train: 5), ..." in record.getMessage()

        caplog.clear()
        module.setup("test")

        assert [record.args[:4] for record in caplog.records if record.args] == [  # type: ignore[index]
            (8, 9, "test", "train"),
            (9, 9, "test", "val"),
        ]

    def test_equal_bytes_are_the_same_picture_even_where_only_one_stage_is_run(
        self, tiny_llava: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.module(tiny_llava, self.files[:3], [self.copy, *self.files[3:]]).setup("test")

        assert "1 of the 7 samples of the 'test' split" in caplog.text
        assert "test-copy (in train: 0). Keep" in caplog.text

    def test_pictures_in_memory_are_the_same_if_they_are_called_so(
        self, tiny_llava: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        drawn = LazyImage((20, 20), picture)
        train = [Sample(id=name, images=[drawn], label="two", picture=name) for name in ("a", "b")]
        module = Memory(
            train,
            [replace(train[1], id="c"), replace(train[1], id="d", picture="d")],
            checkpoint=tiny_llava,
        )

        module.setup("test")

        assert "1 of the 2 samples of the 'test' split" in caplog.text
        assert "test-c (in train: b)" in caplog.text

    def test_different_pictures_and_those_made_on_demand_warn_of_nothing(
        self, tiny_llava: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        module = self.module(tiny_llava, self.files[:4], self.files[4:])
        module.setup("fit")
        drawn = LazyImage((20, 20), picture)

        def make(index: int) -> Sample:
            return Sample(id=str(index), images=[drawn], label="two", picture="a")

        Memory(LazySamples(3, make), [make(0)], checkpoint=tiny_llava).setup("test")

        assert not caplog.records


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_copies_in_two_split_folders_are_said(
    stage: str, tmp_path: Path, tiny_llava: str, caplog: pytest.LogCaptureFixture
) -> None:
    for k, split in enumerate(("train", "val", "test")):
        (tmp_path / split / "a").mkdir(parents=True)
        for number in range(3):
            picture(20, 30, (9 * k, number, 0)).save(tmp_path / split / "a" / f"{number}.png")
        picture(30, 20).save(tmp_path / split / "a" / f"same{split}.png")

    ImageFolder(root=str(tmp_path), checkpoint=tiny_llava).setup(stage)

    split = "val" if stage == "fit" else "test"
    assert f"{split}/a/same{split}.png (in train: train/a/sametrain.png)" in caplog.text
