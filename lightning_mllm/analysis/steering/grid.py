"""The grid of places, layers and scales that both sweeps go through, and its checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.analysis.core.windows import Window, Windows
from lightning_mllm.analysis.steering.steer import Steer
from lightning_mllm.errors import ConfigError
from lightning_mllm.store.seeds import seed_rank_of

_TRIED = 4  # random vectors per question: many questions with some say as much as with all


@dataclass(frozen=True)
class SteeringGrid:
    """What is swept.

    Attributes:
        steers: Where vectors are read and added.
        windows: In front of which layers they are added.
        scales: What they are multiplied by.
        random_vectors: How many random vectors of equal norm each is compared with; a question is
            tried with a few of them.
        seed: Seed of the random vectors.
    """

    steers: tuple[Steer, ...]
    windows: Windows
    scales: tuple[float, ...]
    random_vectors: int
    seed: int

    @classmethod
    def of(  # noqa: PLR0917 - an analysis passes its options on
        cls,
        name: str,
        steers: Sequence[str],
        windows: Windows,
        scales: Sequence[float],
        random_vectors: int,
        seed: int,
    ) -> SteeringGrid:
        """Return the grid of an analysis' options.

        Raises:
            ConfigError: It is empty, names something twice, or has no random vector.
        """
        parsed = tuple(Steer.parse(text) for text in steers)
        for option, found in (("steers", [*map(str, parsed)]), ("scales", [*scales])):
            if not found or len({*found}) < len(found):
                raise ConfigError(f"{name}.{option} needs values, each once; found {found}.")
        if random_vectors < 1:
            raise ConfigError(
                f"{name}.random_vectors is {random_vectors}; an effect says nothing without its "
                "control. Set 1 or more; 20 are usual."
            )
        return cls(parsed, windows, tuple(map(float, scales)), random_vectors, seed)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the rows, as plain data."""
        return {**asdict(self), "steers": [*map(str, self.steers)], "scales": [*self.scales]}

    @property
    def tried(self) -> int:
        """With how many random vectors each question is tried."""
        return min(_TRIED, self.random_vectors)

    def choose_random(self, sample_ids: Sequence[str]) -> Tensor:
        """Return which random vectors each question is tried with, (tried, questions) numbers.

        All vectors have their turn: which ones depends on the question's id and the seed, and on
        nothing else.
        """
        count, step = self.random_vectors, self.random_vectors // self.tried
        first = [seed_rank_of(f"random/{each}", self.seed) % count for each in sample_ids]
        turns = step * torch.arange(self.tried)[:, None]
        return (torch.tensor(first)[None] + turns) % count

    def cells(self, depth: int) -> list[tuple[Steer, Window, float]]:
        """Return all combinations in a decoder of `depth` layers.

        Raises:
            ConfigError: A window does not fit.
        """
        windows = dict.fromkeys(self.windows.of(depth))
        return [*product(self.steers, windows, self.scales)]


def name_steering_layers(start: int, stop: int) -> str:
    """Return the name of a window on the axis of a result: "3", or "0-5"."""
    return str(start) if stop - start == 1 else f"{start}-{stop - 1}"
