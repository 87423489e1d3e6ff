"""Keeps the features themselves, for notebooks and other tools."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L

from lightning_mllm.callbacks import features, trainer_state
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.probing import FeatureCache, Point, save_features


class SaveFeatures(L.Callback):
    """Writes pooled features to `features/<split>-step<k>.safetensors`; `probing.load_features` reads them.

    Training and validation split before training and at validations of a fit, the test split after a test; of these
    two splits the samples that the model itself is evaluated on, of the training split all (`features.tapped_samples`).

    Args:
        points: Where features are tapped; by default behind the projection, averaged over the tokens.
        every_n_epochs: Epochs between files; the last validation of a fit always gives some.
        cache: Keeps what a frozen vision tower makes of the images.
    """

    def __init__(
        self,
        points: Point | Sequence[Point] | None = None,
        every_n_epochs: int = 1,
        cache: FeatureCache | None = None,
    ) -> None:
        points = Point("post") if points is None else points
        self.points = (points,) if isinstance(points, Point) else tuple(points)
        if not self.points or every_n_epochs < 1:
            raise ConfigError("SaveFeatures needs one point or more, and every_n_epochs of at least 1.")
        self.every_n_epochs, self.cache = every_n_epochs, cache

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the options, and save the features of the untrained model."""
        features.check_features(trainer, pl_module, self.points, self.cache)
        if trainer_state.starts_untrained(trainer, trainer_state.mllm(pl_module)):
            self._save(trainer, pl_module, "train", "val")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save those of the model as it is."""
        if trainer_state.is_due(trainer, self.every_n_epochs):
            self._save(trainer, pl_module, "train", "val")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the options."""
        features.check_features(trainer, pl_module, self.points, self.cache)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save those of the test split."""
        self._save(trainer, pl_module, "test")

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule, *splits: Split) -> None:
        module = trainer_state.mllm(pl_module)
        for split in splits:
            sets = features.features(trainer, module, split, self.points, self.cache)
            if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
                continue
            path = trainer_state.run_dir(trainer) / "features" / f"{split}-step{module.trained_steps}.safetensors"
            settings = {"checkpoint": module.source.checkpoint, "split": split, "step": module.trained_steps}
            save_features(path, sets, settings)
