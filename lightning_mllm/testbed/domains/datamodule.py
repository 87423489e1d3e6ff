"""The domains as DataModules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, Literal

from PIL import Image

from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.testbed.datamodules import check_counts
from lightning_mllm.testbed.domains import glyphs, leaves, lesions, textures
from lightning_mllm.testbed.world.scenes import SIDE
from lightning_mllm.types import LazyImage, Sample

DomainName = Literal["glyphs", "textures", "leaves", "lesions"]

_DOMAINS = {
    "glyphs": (glyphs.CLASSES, glyphs.draw),
    "textures": (textures.CLASSES, textures.draw),
    "leaves": (leaves.CLASSES, leaves.draw),
    "lesions": (lesions.CLASSES, lesions.draw),
}
_KEPT = 4096  # pictures, of 12 kB: each is looked at in every epoch by the model, and by whatever follows its features


class Domain(MLLMDataModule):
    """Pictures of one domain with their classes, drawn when first needed; every split has all classes alike.

    Args:
        name: Which domain; from easy to hard: "glyphs", "textures", "leaves", "lesions".
        per_class: Training pictures of each class.
        val_per_class: Validation pictures of each class.
        test_per_class: Test pictures of each class.
        domain_seed: Seed of the pictures; another one gives other pictures of the same classes.
        **kwargs: Options of `MLLMDataModule`.

    Raises:
        ConfigError: There is no such domain, or a split would be empty.
    """

    def __init__(
        self,
        *,
        name: DomainName,
        per_class: int = 100,
        val_per_class: int = 15,
        test_per_class: int = 30,
        domain_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if name not in _DOMAINS:
            raise ConfigError(f"There is no domain {name!r}. Choose one of {', '.join(_DOMAINS)}.")
        self.name: DomainName = name
        self.counts: dict[Split, int] = {"train": per_class, "val": val_per_class, "test": test_per_class}
        check_counts(self.counts, {"train": "per_class", "val": "val_per_class", "test": "test_per_class"})
        self.domain_seed = domain_seed

    def load(self, split: Split) -> Sequence[Sample]:
        """Return the pictures of a split, class after class within each round."""
        classes, _ = _DOMAINS[self.name]
        samples = []
        for index in range(self.counts[split]):
            key = f"{self.domain_seed}/{split}/{index}"
            for label in classes:
                image = LazyImage((SIDE, SIDE), partial(_picture, self.name, label, key))
                samples.append(Sample(id=f"{self.name}/{key}/{label}", images=[image], label=label))
        return samples


@lru_cache(maxsize=_KEPT)
def _picture(name: DomainName, label: str, key: str) -> Image.Image:
    _, draw = _DOMAINS[name]
    return draw(label, key)
