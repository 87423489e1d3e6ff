"""Says at the end of a fit what was to learn and did not."""

from __future__ import annotations

import logging

import lightning as L

from lightning_mllm.callbacks import trainer_state
from lightning_mllm.callbacks.freeze_audit import checksums
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.store.files import write_rows

_NAMED = 3  # tensors, in the warning

log = logging.getLogger(__name__)


class LearningAudit(L.Callback):
    """Warns of trained tensors that a fit has not moved by a single bit, and names them in `never_moved.csv`.

    They got no gradient, or one that their learning rate makes too small for float32. In a fit of a few steps that can
    be as it must: the A of an adapter moves once its B has.
    """

    def __init__(self) -> None:
        self._before: dict[str, int] = {}
        self._first_step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the trained weights, those of the checkpoint if the fit goes on from one."""
        if trainer.is_global_zero:
            module = trainer_state.mllm(pl_module)
            self._before, self._first_step = _trained_checksums(module), module.trained_steps

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare; the step of a trial with `fast_dev_run` is the first of a warm-up, at rate 0."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        backbone, after = trainer_state.mllm(pl_module).backbone, _trained_checksums(trainer_state.mllm(pl_module))
        still = [name for name, checksum in self._before.items() if after.get(name) == checksum]
        if not still:
            return
        sizes = {name: parameter.numel() for name, parameter in backbone.parameters()}
        rows = [[name, backbone.part_of(name).value, sizes[name]] for name in still]
        path = write_rows(trainer_state.run_dir(trainer) / "never_moved.csv", ["tensor", "part", "parameters"], rows)
        log.warning(
            "In the %d steps of this fit %d of %d trained tensors never moved: %s%s (%s).",
            *(trainer.global_step - self._first_step, len(still), len(self._before)),
            *(", ".join(still[:_NAMED]), ", ..." if len(still) > _NAMED else "", path),
        )


def _trained_checksums(module: MLLMModule) -> dict[str, int]:
    return checksums({name: each for name, each in module.backbone.parameters() if each.requires_grad})
