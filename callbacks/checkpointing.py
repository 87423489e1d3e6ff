"""When a fit writes checkpoints."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class Checkpointing(ModelCheckpoint):
    """Lightning's callback, but `last.ckpt` is always that of the last step."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last step if it is not written; a trial writes nothing."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
