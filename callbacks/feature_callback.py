"""The base of callbacks that extract features: before training, at validations, after a test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import lightning as L

from lightning_mllm.callbacks.trainer_state import (
    trainer_is_due,
    trainer_mllm,
    trainer_starts_untrained,
)
from lightning_mllm.callbacks.watched_split import check_watched_features, extract_watched_features
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.probing import FeatureCache, FeatureSet, Point


class FeatureCallback(L.Callback, ABC):
    """Calls `use_features` before training, at validations of a fit, and after a test.

    Args:
        points: Where features are read.
        every_n_epochs: Number of epochs between the validations that are used; the last validation
            of a fit always is.
        before_training: Whether the untrained model is used too.
        cache: Stores the features of a frozen vision tower.

    Raises:
        ConfigError: There is no point, or `every_n_epochs` is less than 1.
    """

    def __init__(
        self,
        points: Point | Sequence[Point],
        *,
        every_n_epochs: int,
        before_training: bool,
        cache: FeatureCache | None,
    ) -> None:
        name = type(self).__name__
        self.points = (points,) if isinstance(points, Point) else tuple(points)
        if not self.points:
            raise ConfigError(f"{name}.points is empty. Name one point or more.")
        if every_n_epochs < 1:
            raise ConfigError(f"{name}.every_n_epochs must be at least 1, not {every_n_epochs}.")
        self.every_n_epochs, self.before_training = every_n_epochs, before_training
        self.cache = cache

    @abstractmethod
    def use_features(self, trainer: L.Trainer, pl_module: L.LightningModule, split: Split) -> None:
        """Extract features with the current weights, and use them.

        Args:
            trainer: The Trainer, with its data.
            pl_module: The MLLMModule that is trained or tested.
            split: "val" during a fit, "test" after a test.
        """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the options, and use the features of the untrained model."""
        check_watched_features(trainer, pl_module, self.points, self.cache)
        module = trainer_mllm(pl_module)
        if self.before_training and trainer_starts_untrained(trainer, module):
            self.use_features(trainer, pl_module, "val")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Use the features of the current model."""
        if trainer_is_due(trainer, self.every_n_epochs):
            self.use_features(trainer, pl_module, "val")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the options."""
        check_watched_features(trainer, pl_module, self.points, self.cache)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Use the features of the test split."""
        self.use_features(trainer, pl_module, "test")

    def extract(
        self, trainer: L.Trainer, pl_module: L.LightningModule, split: Split
    ) -> dict[str, FeatureSet]:
        """Return the features of a split, by the names of the points."""
        return extract_watched_features(trainer, pl_module, split, self.points, self.cache)
