"""The training samples of several tasks, side by side on one device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_mllm.probing.probes.probe import ProbeTask

_CONSTANT = 1e-6  # deviation relative to the mean; what deviates less is constant up to rounding


class StackedData:
    """The training samples of several networks; each network has its own samples, labels and order.

    Features keep their dtype until they are in a batch. Computations are in float64 for float64
    features, in float32 for all others.

    Args:
        tasks: One per network, all with the same number of samples and the same width.
        standardise: Whether to subtract the mean and divide by the standard deviation of the train
            split, feature by feature; a feature that is constant there is only shifted.
        device: Where to train.
    """

    def __init__(self, tasks: Sequence[ProbeTask], standardise: bool, device: torch.device) -> None:
        sets = list({id(task.train): task.train for task in tasks}.values())  # each once
        number = {id(features): position for position, features in enumerate(sets)}
        self.device = device
        self._samples = len(sets[0])
        self._features = torch.cat([features.features.to(device) for features in sets])
        self._labels = torch.stack([task.labels for task in tasks]).to(device)
        self._set = torch.tensor([number[id(task.train)] for task in tasks], device=device)
        is_double = self._features.dtype == torch.float64
        self.dtype = torch.float64 if is_double else torch.float32
        self._moments: tuple[Tensor, Tensor] | None = None
        if standardise:
            parts = self._features.split(self._samples)
            means, deviations = zip(
                *[moments_of_stacked_data(part.to(self.dtype)) for part in parts], strict=True
            )
            self._moments = torch.stack(means), torch.stack(deviations)

    def batch(self, models: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Gather samples.

        Args:
            models: (models,) positions of the tasks.
            rows: (models, batch) rows of their train splits.

        Returns:
            Features (models, batch, width) and labels (models, batch).
        """
        stacked_rows = rows + self._samples * self._set[models, None]
        features = self._features.index_select(0, stacked_rows.flatten()).view(*rows.shape, -1)
        return self.prepare(features, models), self._labels[models].gather(1, rows)

    def prepare(self, features: Tensor, models: Tensor) -> Tensor:
        """Convert (models, samples, width) features to the networks' dtype and standardise them."""
        features = features.to(self.dtype)
        if self._moments is None:
            return features
        mean, deviation = (moment[self._set[models], None] for moment in self._moments)
        return (features - mean) / deviation


def moments_of_stacked_data(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over samples, (width,) each; 1 for a constant feature."""
    variance, mean = torch.var_mean(features, dim=0, correction=0)
    deviation = variance.sqrt()
    return mean, deviation.where(deviation > _CONSTANT * mean.abs(), 1)
