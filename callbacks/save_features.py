"""Saves the features themselves, for notebooks and other tools."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L

from lightning_mllm.callbacks.feature_callback import FeatureCallback
from lightning_mllm.callbacks.trainer_state import (
    trainer_class_names,
    trainer_mllm,
    trainer_run_dir,
    trainer_writes_results,
)
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.probing import FeatureCache, Point, save_features


class SaveFeatures(FeatureCallback):
    """Writes pooled features to `features/<split>-step<k>.safetensors`.

    `probing.load_features` reads these files. The training and the validation split are saved
    before training and at validations of a fit, the test split after a test. From the validation
    and the test split only the samples are saved that the model is evaluated on, from the training
    split all.

    Args:
        points: Where features are read; by default after the projection, averaged over the tokens.
        every_n_epochs: Number of epochs between files; the last validation of a fit is always
            saved.
        cache: Stores the features of a frozen vision tower.
    """

    def __init__(
        self,
        points: Point | Sequence[Point] | None = None,
        every_n_epochs: int = 1,
        cache: FeatureCache | None = None,
    ) -> None:
        super().__init__(
            Point("post") if points is None else points,
            every_n_epochs=every_n_epochs,
            before_training=True,
            cache=cache,
        )

    def check(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse data without labels, and points that the model does not have."""
        trainer_class_names(trainer)
        super().check(trainer, pl_module)

    def splits_used(self, split: Split) -> tuple[Split, ...]:
        """Return the splits that are saved."""
        return ("train", "val") if split == "val" else (split,)

    def use_features(self, trainer: L.Trainer, pl_module: L.LightningModule, split: Split) -> None:
        """Save the features of a split, and during a fit those of the training split too."""
        module = trainer_mllm(pl_module)
        for name in self.splits_used(split):
            sets = self.extract(trainer, pl_module, name).label(trainer_class_names(trainer))
            if not trainer_writes_results(trainer):
                continue
            step = module.trained_steps
            path = trainer_run_dir(trainer) / "features" / f"{name}-step{step}.safetensors"
            settings = {"checkpoint": module.source.checkpoint, "split": name, "step": step}
            save_features(path, sets, settings)
