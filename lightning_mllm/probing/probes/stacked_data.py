"""The training samples of several tasks, side by side on one device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_mllm.probing.probes.probe import Task

_CONSTANT = 1e-6  # relative to its mean, a feature that deviates less is constant but for rounding


class StackedData:
    """What several networks are trained on at once; each has its own samples, labels and order of them.

    Features keep their dtype until they are in a batch. Float64 features are computed with in float64, all others in
    float32.

    Args:
        tasks: One per network, with as many samples of the same width in each.
        standardise: Subtract the mean and divide by the standard deviation of the train split, feature by feature; a
            feature that is constant there is only shifted.
        device: Where to train.
    """

    def __init__(self, tasks: Sequence[Task], standardise: bool, device: torch.device) -> None:
        sets = list({id(task.train): task.train for task in tasks}.values())
        place = {id(features): position for position, features in enumerate(sets)}
        self.device = device
        self._samples = len(sets[0])
        self._features = torch.cat([features.features.to(device) for features in sets])
        self._labels = torch.stack([task.labels for task in tasks]).to(device)
        self._set = torch.tensor([place[id(task.train)] for task in tasks], device=device)
        self.dtype = torch.float64 if self._features.dtype == torch.float64 else torch.float32
        self._moments: tuple[Tensor, Tensor] | None = None
        if standardise:
            found = [moments(part.to(self.dtype)) for part in self._features.split(self._samples)]
            self._moments = torch.stack([m for m, _ in found]), torch.stack([d for _, d in found])

    def batch(self, models: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Look up samples.

        Args:
            models: (models,) positions of the tasks.
            rows: (models, batch) rows of their train splits.

        Returns:
            Features (models, batch, width) and labels (models, batch).
        """
        places = rows + self._samples * self._set[models, None]
        features = self._features.index_select(0, places.flatten()).view(*rows.shape, -1)
        return self.prepare(features, models), self._labels[models].gather(1, rows)

    def prepare(self, features: Tensor, models: Tensor) -> Tensor:
        """Convert features (models, samples, width) to what the networks take, standardised if that was asked for."""
        features = features.to(self.dtype)
        if self._moments is None:
            return features
        mean, deviation = (moment[self._set[models], None] for moment in self._moments)
        return (features - mean) / deviation


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of each feature, (samples, width), and its standard deviation; 1 where it is constant."""
    variance, mean = torch.var_mean(features, dim=0, correction=0)
    deviation = variance.sqrt()
    return mean, deviation.where(deviation > _CONSTANT * mean.abs(), 1)
