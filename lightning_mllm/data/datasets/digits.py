"""The 1,797 scans of digits that scikit-learn ships (UCI ML Repository, 8 x 8 pixels)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.splits import Split, check_split_fractions, stratified_split
from lightning_mllm.types import Sample

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Digits(MLLMDataModule):
    """Handwritten digits; real images that need no download.

    The split is seeded and stratified by class; scans of equal pixels always share a split.

    Args:
        image_size: Side in pixels to which the scans are enlarged.
        val_fraction: Fraction of the scans that make up the validation split.
        test_fraction: Fraction of the scans that make up the test split.
        **kwargs: Options that all datasets have (see `MLLMDataModule`).
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_split_fractions(val_fraction, test_fraction)
        self.image_size = image_size
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    def load(self, split: Split) -> Sequence[Sample]:
        """Return the scans of a split, enlarged, in the order of the dataset."""
        digits = _read_scans()
        strata: dict[str, dict[bytes, list[int]]] = {name: {} for name in NAMES}
        for index, (pixels, target) in enumerate(zip(digits.images, digits.target, strict=True)):
            strata[NAMES[target]].setdefault(pixels.tobytes(), []).append(index)
        groups = {name: list(same_pixels.values()) for name, same_pixels in strata.items()}
        splits = stratified_split(groups, self.val_fraction, self.test_fraction, self.seed)
        samples = []
        for index in sorted(splits[split]):
            image = self._enlarge(digits.images[index])
            label = NAMES[digits.target[index]]
            samples.append(Sample(id=f"digit-{index:04d}", images=[image], label=label))
        return samples

    def _enlarge(self, pixels: np.ndarray[Any, np.dtype[np.float64]]) -> Image.Image:
        """Turn pixels of shape (8, 8) from 0 to 16 into a grey picture."""
        grey = np.round(pixels * 255 / 16).astype(np.uint8)
        size = (self.image_size, self.image_size)
        return Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC)


@cache  # one file holds all splits
def _read_scans() -> Any:
    """Return scikit-learn's `images`, of shape (scans, 8, 8), and `target`, as attributes."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped] # noqa: PLC0415

    return load_digits()
