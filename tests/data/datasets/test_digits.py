from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lightning_mllm.data import Digits
from lightning_mllm.data.datasets.digits import NAMES
from lightning_mllm.data.images.files import open_image_file
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.types import Sample
from tests.support.datamodule_contract import DataModuleContract


class FewDigits(Digits):
    """Every 15th scan of each split."""

    def load(self, split: Split) -> Sequence[Sample]:
        return super().load(split)[::15]


class TestDigits(DataModuleContract):
    def make(self, checkpoint: str, **options: Any) -> Digits:
        return FewDigits(checkpoint=checkpoint, **options)


def test_all_scans_are_split_seventy_ten_twenty() -> None:
    module = Digits(checkpoint="unused")
    sizes = [len(module.load(split)) for split in ("train", "val", "test")]

    assert sum(sizes) == 1797
    assert [round(size / 1797, 2) for size in sizes] == [0.7, 0.1, 0.2]


def test_no_scan_is_in_two_splits() -> None:
    module = Digits(checkpoint="unused")
    pixels: list[set[bytes]] = []
    for split in module.splits:
        images: list[Any] = [sample.images[0] for sample in module.load(split)]
        pixels.append({image.tobytes() for image in images})

    assert not (pixels[0] & pixels[1] | pixels[0] & pixels[2] | pixels[1] & pixels[2])


def test_scans_are_enlarged_and_use_the_whole_scale() -> None:
    (sample, *_) = Digits(checkpoint="unused", image_size=40).load("test")
    image = np.asarray(open_image_file(sample.images[0]))

    assert image.shape == (40, 40, 3)
    assert image.min() == 0
    assert image.max() > 240


def test_classes_are_words(tiny_llava: str) -> None:
    module = Digits(checkpoint=tiny_llava)
    module.setup("validate")

    assert module.label_set is not None
    assert set(module.label_set.names) == set(NAMES)
    assert module.label_set.names == tuple(sorted(NAMES))


def test_fractions_are_checked() -> None:
    with pytest.raises(ConfigError, match="sum below 1"):
        Digits(checkpoint="unused", val_fraction=0.5, test_fraction=0.5)
