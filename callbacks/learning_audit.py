"""Warns at the end of a fit of trained weights that never changed."""

from __future__ import annotations

import logging

import lightning as L

from lightning_mllm.callbacks.freeze_audit import checksums_of_tensors
from lightning_mllm.callbacks.trainer_state import (
    trainer_has_folder,
    trainer_mllm,
    trainer_run_dir,
)
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.store.files import write_csv_file

logger = logging.getLogger(__name__)

_NAMED = 3  # tensors named in the warning


class LearningAudit(L.Callback):
    """Warns of trained tensors that a fit has not changed, and lists them in `never_moved.csv`.

    They got no gradient, or one that their learning rate makes too small for float32. In a fit of
    a few steps this can be normal: matrix A of an adapter moves only after its B has moved.
    """

    def __init__(self) -> None:
        self._before: dict[str, int] = {}
        self._first_step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the trained weights; in a resumed fit, those of its checkpoint."""
        module = trainer_mllm(pl_module)
        self._before, self._first_step = _trained_checksums(module), module.trained_steps

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare; in a trial run the only step is the first of the warm-up, at rate 0."""
        module = trainer_mllm(pl_module)
        took_steps = module.trained_steps > self._first_step  # else nothing was left to train
        after = _trained_checksums(module)  # for which all processes with shards are needed
        if not took_steps or not trainer.is_global_zero or not trainer_has_folder(trainer):
            return
        backbone = module.backbone
        still = [name for name, checksum in self._before.items() if after.get(name) == checksum]
        if not still:
            return
        sizes = {name: parameter.numel() for name, parameter in backbone.parameters()}
        path = write_csv_file(
            trainer_run_dir(trainer) / "never_moved.csv",
            ["tensor", "part", "parameters"],
            ([name, backbone.part_of(name).value, sizes[name]] for name in still),
        )
        logger.warning(
            "In the %d steps of this fit %d of %d trained tensors never moved: %s%s (%s).",
            trainer.global_step - self._first_step,
            len(still),
            len(self._before),
            ", ".join(still[:_NAMED]),
            ", ..." if len(still) > _NAMED else "",
            path,
        )


def _trained_checksums(module: MLLMModule) -> dict[str, int]:
    parameters = module.backbone.parameters()
    return checksums_of_tensors({name: each for name, each in parameters if each.requires_grad})
