"""The domains as DataModules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, Literal

from PIL import Image

from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.testbed.datamodules import check_datamodule_counts
from lightning_mllm.testbed.domains import glyphs, leaves, lesions, textures
from lightning_mllm.testbed.world.scenes import SIDE
from lightning_mllm.types import LazyImage, Sample

DomainName = Literal["glyphs", "textures", "leaves", "lesions"]

_DOMAINS = {
    "glyphs": (glyphs.CLASSES, glyphs.draw_glyph),
    "textures": (textures.CLASSES, textures.draw_texture),
    "leaves": (leaves.CLASSES, leaves.draw_leaf),
    "lesions": (lesions.CLASSES, lesions.draw_lesion),
}
_KEPT = 4096  # pictures of 12 kB in memory: each epoch uses them, and so does each probing callback


class Domain(MLLMDataModule):
    """Pictures of one domain with their classes, drawn when first needed.

    Every split has equally many pictures of each class.

    Args:
        name: Name of the domain; from easy to hard: "glyphs", "textures", "leaves", "lesions".
        per_class: Number of training pictures per class.
        val_per_class: Number of validation pictures per class.
        test_per_class: Number of test pictures per class.
        domain_seed: Seed of the pictures; another seed gives other pictures of the same classes.
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
        self.counts = check_datamodule_counts(
            {
                "train": ("per_class", per_class),
                "val": ("val_per_class", val_per_class),
                "test": ("test_per_class", test_per_class),
            }
        )
        self.domain_seed = domain_seed

    def load(self, split: Split) -> Sequence[Sample]:
        """Return the pictures of a split: one of each class, then the next one of each class."""
        classes, _ = _DOMAINS[self.name]
        samples = []
        for index in range(self.counts[split]):
            key = f"{self.domain_seed}/{split}/{index}"
            for label in classes:
                image = LazyImage((SIDE, SIDE), partial(_draw_picture, self.name, label, key))
                samples.append(Sample(id=f"{self.name}/{key}/{label}", images=[image], label=label))
        return samples


@lru_cache(maxsize=_KEPT)
def _draw_picture(name: DomainName, label: str, key: str) -> Image.Image:
    _, draw = _DOMAINS[name]
    return draw(label, key)
