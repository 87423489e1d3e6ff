"""The mean states of classes that `MeanStates` has read, and the vectors between them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.analysis.core.running_sums import RunningSums
from lightning_mllm.analysis.steering.steer import name_steer_segments
from lightning_mllm.analysis.steering.vector import SteeringVector
from lightning_mllm.errors import ConfigError, did_you_mean
from lightning_mllm.store.files import read_json
from lightning_mllm.store.fingerprint import fingerprint_tensors
from lightning_mllm.store.manifest import MANIFEST

SUMS = "sums.safetensors"
STATES, COUNT, TOKEN, WEIGHTS, PICTURE = "states", "n", "token", "weights", "picture"


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """Sums over the samples of classes, per group of pictures.

    Attributes:
        sums: (segments, class) -> (groups, layers + 1, width) float64: entry l is in front of layer
            l, of each sample the mean over the segments' tokens.
        counts: (segments, class) -> (groups,), how many samples are in the sums.
        tokens: Class -> the tokens with which its answers begin ("red" and "Red" are one class).
        weights: Fingerprint of the model.
        pictures: The pictures of the samples.
        samples: Ids of the samples that were looked at, of any class.
        settings: The options with which they were read, as plain data.
    """

    sums: Mapping[tuple[str, str], Tensor]
    counts: Mapping[tuple[str, str], Tensor]
    tokens: Mapping[str, frozenset[int]]
    weights: str
    pictures: frozenset[str]
    samples: frozenset[str]
    settings: Mapping[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> ClassMeans:
        """Read the folder of a `MeanStates` that has ended.

        Raises:
            ConfigError: There is no such folder, or its sums are of several models.
            DataError: It can't be read.
        """
        path = Path(folder, SUMS)
        if not path.is_file() or not Path(folder, MANIFEST).is_file():
            raise ConfigError(
                f"{folder} is not the folder of a MeanStates that has ended. Run one, and name its "
                "folder: runs/<name>/analysis/<split>-step<k>/mean_states."
            )
        settings = read_json(Path(folder, MANIFEST))["analysis"]
        return cls.of(RunningSums.read(path), settings, str(folder))

    @classmethod
    def of(cls, found: RunningSums, settings: Mapping[str, Any], where: str) -> ClassMeans:
        """Sort what a `MeanStates` has found.

        Raises:
            ConfigError: The sums are of several models, or of none.
        """
        sums: dict[tuple[str, str], Tensor] = {}
        counts: dict[tuple[str, str], Tensor] = {}
        for name, total in found.sums.items():
            what, _, rest = name.partition("/")
            if what in (STATES, COUNT) and rest:
                at, _, own = rest.partition("/")
                (sums if what == STATES else counts)[at, own] = total
        noted: dict[str, dict[str, int]] = {TOKEN: {}, WEIGHTS: {}, PICTURE: {}}
        for name, value in found.kept.items():
            what, _, rest = name.partition("/")
            noted[what][rest] = int(value)
        if len(noted[WEIGHTS]) != 1:
            raise ConfigError(
                f"{where} has the states of {len(noted[WEIGHTS])} models, where one is expected. "
                "Read them again, in another folder."
            )
        (weights,) = noted[WEIGHTS]
        pictures, samples = frozenset(noted[PICTURE]), frozenset(found.done)
        tokens: dict[str, frozenset[int]] = {}
        for name, token in noted[TOKEN].items():
            own = name.partition("/")[2]
            tokens[own] = tokens.get(own, frozenset()) | {token}
        return cls(sums, counts, tokens, weights, pictures, samples, settings)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, sorted."""
        return tuple(sorted({name for _, name in self.sums}))

    @property
    def segments(self) -> tuple[str, ...]:
        """The segments at which states were read, sorted."""
        return tuple(sorted({at for at, _ in self.sums}))

    @property
    def digest(self) -> str:
        """A short hash of all sums."""
        named = sorted(self.sums.items())
        return fingerprint_tensors((f"{at}/{name}", total) for (at, name), total in named)[:16]

    def check_has(self, name: str, read_at: str) -> None:
        """Refuse a class, or segments, of which there are no states.

        Raises:
            ConfigError: There are none.
        """
        if (read_at, name) in self.sums:
            return
        known = self.segments if read_at not in self.segments else self.classes
        wanted = read_at if read_at not in self.segments else name
        raise ConfigError(
            f"No states of {wanted!r} were read; there are those of {', '.join(known)}. Choose one "
            f"of these, or read others with MeanStates.{did_you_mean(wanted, known)}"
        )

    def first_token(self, name: str) -> int:
        """Return the token with which all answers of a class begin.

        Raises:
            ConfigError: They begin with several.
        """
        tokens = sorted(self.tokens[name])
        if len(tokens) != 1:
            raise ConfigError(
                f"Answers of the class {name!r} begin with {len(tokens)} tokens (ids "
                f"{', '.join(map(str, tokens))}), so the first token does not tell whether it is "
                "said. Write these answers in one way, or choose another class."
            )
        return tokens[0]

    def count(self, name: str, read_at: str) -> int:
        """Return how many samples a mean is made of."""
        return int(self.counts[read_at, name].sum())

    def mean(self, name: str, read_at: str, groups: Collection[int] | None = None) -> Tensor:
        """Return the mean state of a class, (layers + 1, width) float64.

        Args:
            name: The class.
            read_at: The segments.
            groups: Groups of pictures that count; by default all. NaN where they have no sample.
        """
        sums, counts = self.sums[read_at, name], self.counts[read_at, name]
        kept: Sequence[int] = list(range(len(counts)) if groups is None else groups)
        mean: Tensor = sums[kept].sum(0) / counts[kept].sum()
        return mean

    def difference(self, target: str, source: str, read_at: str) -> SteeringVector:
        """Return the vector from one class to another: mean(target) - mean(source).

        Raises:
            ConfigError: There are no states of one of them.
        """
        read_at = name_steer_segments(read_at)
        for name in (target, source):
            self.check_has(name, read_at)
        states = self.mean(target, read_at) - self.mean(source, read_at)
        counts = {name: self.count(name, read_at) for name in (source, target)}
        name = f"{source}->{target}"
        return SteeringVector(name, read_at, states.float(), self.weights, counts)


def shift_vector(before: ClassMeans, after: ClassMeans, name: str, read_at: str) -> SteeringVector:
    """Return how fine-tuning has moved the mean state of a class, for the model before it.

    Args:
        before: States of the model before.
        after: States of the fine-tuned model, of the same samples.
        name: The class.
        read_at: The segments.

    Raises:
        ConfigError: The states are not of the same samples or shape, or there are none of the
            class.
    """
    check_same_samples(before, after)
    read_at = name_steer_segments(read_at)
    for means in (before, after):
        means.check_has(name, read_at)
    states = after.mean(name, read_at) - before.mean(name, read_at)
    counts = {name: before.count(name, read_at)}
    return SteeringVector(f"shift of {name}", read_at, states.float(), before.weights, counts)


def check_same_samples(before: ClassMeans, after: ClassMeans) -> None:
    """Refuse states of other samples, of models of another shape, or of one and the same model.

    Raises:
        ConfigError: They are.
    """
    if before.weights == after.weights:
        raise ConfigError(
            f"The states before and after fine-tuning are of the same weights ({before.weights}). "
            "Name the folders of two models."
        )
    if before.samples != after.samples or before.settings != after.settings:
        raise ConfigError(
            f"The states before fine-tuning are of {len(before.samples)} samples, those after it "
            f"of {len(after.samples)}, and samples or options differ. Run MeanStates with the same "
            "data and options on both models."
        )
    shapes = [next(iter(means.sums.values())).shape[1:] for means in (before, after)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"The two models differ in layers or width: {tuple(shapes[0])} and {tuple(shapes[1])}. "
            "A shift needs two checkpoints of one shape."
        )


def stack_class_states(vectors: Sequence[SteeringVector]) -> Tensor:
    """Return the vectors of several samples, (samples, layers + 1, width)."""
    return torch.stack([vector.states for vector in vectors])
