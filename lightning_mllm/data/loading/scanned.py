"""What is known of samples without opening their pictures, as arrays."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.data.images.geometry import Size
from lightning_mllm.data.loading.sample_sizes import SampleSizes
from lightning_mllm.data.loading.text_array import TextArray, TextArrayBuilder

Trait = tuple[object, ...]
_NONE = -1


@dataclass(frozen=True, slots=True)
class ScannedSample:
    """What is known of a sample without opening its pictures.

    Attributes:
        id: The id of the sample.
        images: How many images it has.
        inner: The sizes of those that are not files.
        characters: How many characters its texts have; 0 if it has a label.
        kind: The kind of its question, if it has one.
        bound: Most tokens that its text can have; None if that is not known.
        trait: Samples with equal traits have texts of as many tokens, but for the order of class
            names; None for a text of its own.
        odd: Whether one of its texts begins or ends as none before: a token could span that border.
    """

    id: str
    images: int
    inner: tuple[Size, ...]
    characters: int
    kind: str | None
    bound: int | None
    trait: Trait | None
    odd: bool


class ScannedSamples:
    """What is known of the samples of a split that can be used, by their indices."""

    def __init__(self) -> None:
        self._ids = TextArrayBuilder()
        self._images, self._characters = array("i"), array("q")
        self._bounds, self._traits, self._kinds = array("q"), array("i"), array("i")
        self._odd, self._usable = bytearray(), bytearray()
        self._inner, self._inner_owners = array("i"), array("q")
        self._kind_numbers: dict[str, int] = {}
        self._trait_numbers: dict[Trait, int] = {}

    def append(self, sample: ScannedSample | None) -> None:
        """Take in the next sample; None for one that can't be used."""
        self._usable.append(sample is not None)
        if sample is None:
            sample = ScannedSample("", 0, (), 0, None, None, None, False)
        for size in sample.inner:
            self._inner_owners.append(len(self._images))
            self._inner.extend(size)
        self._ids.append(sample.id)
        self._images.append(sample.images)
        self._characters.append(sample.characters)
        self._bounds.append(_NONE if sample.bound is None else sample.bound)
        trait = kind = _NONE
        if sample.trait is not None:
            trait = self._trait_numbers.setdefault(sample.trait, len(self._trait_numbers))
        if sample.kind is not None:
            kind = self._kind_numbers.setdefault(sample.kind, len(self._kind_numbers))
        self._traits.append(trait)
        self._kinds.append(kind)
        self._odd.append(sample.odd)

    def drop(self, index: int) -> None:
        """Forget a sample, which can't be used after all."""
        self._usable[index] = False

    def __contains__(self, index: int) -> bool:
        return bool(self._usable[index])

    def __len__(self) -> int:
        """Return how many samples can be used."""
        return sum(self._usable)

    def indices(self) -> NDArray[np.int64]:
        """Return the indices of the samples that can be used, ascending."""
        return np.flatnonzero(np.frombuffer(self._usable, np.uint8))

    @cached_property
    def ids(self) -> TextArray:
        """The ids of all samples; empty for those that can't be used."""
        return self._ids.build()

    @property
    def kinds(self) -> set[str]:
        """The kinds of questions that are there."""
        present = np.frombuffer(self._kinds, np.int32)[self.indices()]
        names = list(self._kind_numbers)
        return {names[number] for number in np.unique(present).tolist() if number != _NONE}

    @property
    def bounds(self) -> NDArray[np.int64]:
        """Most tokens that each text can have; -1 where that is not known."""
        return np.frombuffer(self._bounds, np.int64)

    @property
    def traits(self) -> NDArray[np.int32]:
        """A number for each trait; -1 for texts of their own."""
        return np.frombuffer(self._traits, np.int32)

    @property
    def odd(self) -> NDArray[np.bool_]:
        """Whether a sample's text begins or ends as none before."""
        return np.frombuffer(self._odd, np.bool_)

    @property
    def inner(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The sample and the size of each picture that is not a file."""
        sizes = np.frombuffer(self._inner, np.int32).reshape(-1, 2)
        return np.frombuffer(self._inner_owners, np.int64), sizes

    def sizes(self) -> SampleSizes:
        """Return the sizes of the samples that can be used."""
        kept = self.indices()
        images = np.frombuffer(self._images, np.int32)[kept]
        characters = np.frombuffer(self._characters, np.int64)[kept]
        ids = self.ids if len(kept) == len(self.ids) else self.ids.take(kept)
        return SampleSizes.of_columns(ids, images, characters)
