"""Measures how far the features, and the projection's weights, move during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
from torch import Tensor

from lightning_mllm.callbacks.trainer_state import (
    trainer_class_names,
    trainer_epoch,
    trainer_is_fitting,
    trainer_is_trial,
    trainer_mllm,
    trainer_run_dir,
    trainer_writes_results,
)
from lightning_mllm.callbacks.watched_split import (
    check_watched_features,
    extract_watched_features,
    watched_samples,
)
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Part
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.shard_values import whole_values
from lightning_mllm.probing import (
    FeatureCache,
    FeatureSet,
    Point,
    linear_cka,
    mean_cosine,
    relative_change,
)
from lightning_mllm.store.files import write_csv_file
from lightning_mllm.tracking.loggers import log_metrics

COLUMNS = ("epoch", "step", "point", "cka", "cosine", "weight_change", "n")


class RepresentationDrift(L.Callback):
    """Compares validation features at each validation of a fit with those before training.

    `drift.csv` has linear CKA and mean cosine per point, and the relative change of the
    projection's weights.

    Args:
        points: Where features are read; by default after the projection, averaged over the tokens.
        cache: Stores the features of a frozen vision tower.
    """

    def __init__(
        self, points: Sequence[Point] | None = None, cache: FeatureCache | None = None
    ) -> None:
        self.points = (Point("post"),) if points is None else tuple(points)
        if not self.points:
            raise ConfigError("RepresentationDrift.points is empty. Name one point or more.")
        self.cache = cache
        self._weights: dict[str, Tensor] = {}  # of the projection, before training
        self._features: dict[str, Tensor] = {}  # by point, before training
        self._sample_ids: list[str] = []  # of the rows of these features
        self._rows: list[list[Any]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remember the projection of the checkpoint; a resumed run loads trained weights later."""
        module = trainer_mllm(pl_module)
        if stage == "fit" and not self._weights:
            module.configure_model()
            for name, weight in _projector(module).items():
                self._weights[name] = weight.cpu().clone()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the features before training; in a resumed run, check those it remembers.

        Raises:
            ConfigError: The resumed run has none, or they are of other points or samples.
        """
        module = trainer_mllm(pl_module)
        trainer_class_names(trainer)
        check_watched_features(trainer, module, self.points, self.cache)
        if not trainer.enable_validation:
            return
        if self._features or module.trained_steps:
            self._check_reference(trainer, module)
            return
        sets = self._extract(trainer, module)
        if not trainer_is_trial(trainer):
            self._features = {point: found.features.clone() for point, found in sets.items()}
            self._sample_ids = list(next(iter(sets.values())).sample_ids)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the current features with those before training."""
        if not trainer_is_fitting(trainer):
            return
        module = trainer_mllm(pl_module)
        sets = self._extract(trainer, module)
        if not trainer_writes_results(trainer):
            return
        epoch, step = trainer_epoch(trainer, module), module.trained_steps
        weights = {name: weight.cpu() for name, weight in _projector(module).items()}
        change = relative_change(self._weights, weights)
        logged = {"drift/projector_weights": change}
        for point, found in sets.items():
            before = self._features[point]
            cka = linear_cka(before, found.features)
            cosine = mean_cosine(before, found.features)
            logged |= {f"drift/{point}/cka": cka, f"drift/{point}/cosine": cosine}
            self._rows.append([epoch, step, point, cka, cosine, change, len(found)])
        write_csv_file(trainer_run_dir(trainer) / "drift.csv", COLUMNS, self._rows)
        log_metrics(trainer.loggers, logged, step)

    def state_dict(self) -> dict[str, Any]:
        """Return the features before training, their sample ids, and the rows so far."""
        return {
            "features": self._features,
            "sample_ids": self._sample_ids,
            "rows": self._rows,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of the resumed run; keep the own state when testing a checkpoint."""
        if not self._features:
            self._features = dict(state_dict["features"])
            self._sample_ids = list(state_dict["sample_ids"])
            self._rows = list(state_dict["rows"])

    def _extract(self, trainer: L.Trainer, module: MLLMModule) -> dict[str, FeatureSet]:
        return extract_watched_features(trainer, module, "val", self.points, self.cache)

    def _check_reference(self, trainer: L.Trainer, module: MLLMModule) -> None:
        """Check that the features before training are there, and of the same points and samples."""
        way_out = "or leave RepresentationDrift out, or start a new run."
        if not self._features:
            raise ConfigError(
                "RepresentationDrift compares with the features before training, but this model "
                f"has been trained for {module.trained_steps} steps, and its checkpoint was "
                f"written without the callback. Resume another checkpoint, {way_out}"
            )
        known, asked = sorted(self._features), sorted(point.name for point in self.points)
        if known != asked:
            raise ConfigError(
                f"RepresentationDrift has features before training at {', '.join(known)}, but its "
                f"points are {', '.join(asked)}. Give those points, {way_out}"
            )
        now = [sample.id for sample in watched_samples(trainer, "val")]
        if now != self._sample_ids and not trainer_is_trial(trainer):
            raise ConfigError(
                "RepresentationDrift has features before training of "
                f"{len(self._sample_ids)} validation samples, but the validation split now has "
                f"{len(now)}, or other ones. Resume with the same data and limit_val_batches, "
                f"{way_out}"
            )


def _projector(module: MLLMModule) -> dict[str, Tensor]:
    """Return the weights of the projection."""
    parameters = module.backbone.parameters(Part.PROJECTOR)
    return {name: whole_values(parameter.detach()) for name, parameter in parameters}
