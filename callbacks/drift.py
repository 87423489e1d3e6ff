"""Follows how far the features, and the projection's weights, move away from where they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
from torch import Tensor

from lightning_mllm.callbacks import features, trainer_state
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Part
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.probing import FeatureCache, Point, linear_cka, mean_cosine, relative_change
from lightning_mllm.store.files import write_rows
from lightning_mllm.tracking.loggers import log_metrics

COLUMNS = ("epoch", "step", "point", "cka", "cosine", "weight_change", "n")


class RepresentationDrift(L.Callback):
    """Compares the features of the validation split, at each validation of a fit, with those before training.

    `drift.csv` has linear CKA and mean cosine per point, and the relative movement of the projection's weights.

    Args:
        points: Where features are tapped; by default behind the projection, averaged over the tokens.
        cache: Keeps what a frozen vision tower makes of the images.
    """

    def __init__(self, points: Sequence[Point] | None = None, cache: FeatureCache | None = None) -> None:
        self.points = (Point("post"),) if points is None else tuple(points)
        if not self.points:
            raise ConfigError("RepresentationDrift needs one point or more.")
        self.cache = cache
        self._weights: dict[str, Tensor] = {}
        self._features: dict[str, Tensor] = {}
        self._sample_ids: list[str] = []  # whose features these are
        self._rows: list[list[Any]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remember the projection as the checkpoint has it; a run that is resumed puts trained weights in later."""
        module = trainer_state.mllm(pl_module)
        if stage == "fit" and not self._weights:
            module.configure_model()
            self._weights = {name: weight.cpu().clone() for name, weight in _projector(module).items()}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the features before training; of a run that is resumed, check those that it remembers.

        Raises:
            ConfigError: The run that is resumed remembers none, or they are of other points or samples.
        """
        module = trainer_state.mllm(pl_module)
        features.check_features(trainer, module, self.points, self.cache)
        if not trainer.enable_validation:
            return
        if self._features or module.trained_steps:
            self._check_reference(trainer, module)
        else:
            sets = features.features(trainer, module, "val", self.points, self.cache)
            if not trainer.fast_dev_run:  # type: ignore[attr-defined]
                self._features = {point: each.features.clone() for point, each in sets.items()}
                self._sample_ids = list(next(iter(sets.values())).sample_ids)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare."""
        if not trainer_state.is_fitting(trainer):
            return
        module = trainer_state.mllm(pl_module)
        sets = features.features(trainer, module, "val", self.points, self.cache)
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        change = relative_change(self._weights, {name: weight.cpu() for name, weight in _projector(module).items()})
        logged = {"drift/projector_weights": change}
        for point, each in sets.items():
            cka, cosine = (f(self._features[point], each.features) for f in (linear_cka, mean_cosine))
            logged |= {f"drift/{point}/cka": cka, f"drift/{point}/cosine": cosine}
            when = trainer_state.epoch_of(trainer, module), module.trained_steps
            self._rows.append([*when, point, cka, cosine, change, len(each)])
        write_rows(trainer_state.run_dir(trainer) / "drift.csv", COLUMNS, self._rows)
        log_metrics(trainer.loggers, logged, module.trained_steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the features before training, whose they are, and what was found so far."""
        return {"features": self._features, "sample_ids": self._sample_ids, "rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take those of the run that is resumed, unless this is a test, with a checkpoint, of what was fitted."""
        if not self._features:
            self._features, self._sample_ids = dict(state_dict["features"]), list(state_dict["sample_ids"])
            self._rows = list(state_dict["rows"])

    def _check_reference(self, trainer: L.Trainer, module: MLLMModule) -> None:
        way_out = "or leave RepresentationDrift out, or start a new run."
        if not self._features:
            raise ConfigError(
                "RepresentationDrift compares with the features before training, but this model has been trained for "
                f"{module.trained_steps} steps, and its checkpoint was written without the callback. Resume another "
                f"checkpoint, {way_out}"
            )
        known, asked = sorted(self._features), sorted(point.name for point in self.points)
        if known != asked:
            raise ConfigError(
                f"RepresentationDrift has features before training at {', '.join(known)}, but its points are "
                f"{', '.join(asked)}. Give those points, {way_out}"
            )
        now = [sample.id for sample in features.tapped_samples(trainer, "val")]
        if now != self._sample_ids and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ConfigError(
                f"RepresentationDrift has features before training of {len(self._sample_ids)} validation samples, but "
                f"the validation split now has {len(now)}, or others. Resume with the same data and limit_val_batches, "
                f"{way_out}"
            )


def _projector(module: MLLMModule) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.backbone.parameters(Part.PROJECTOR)}
