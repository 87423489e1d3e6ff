"""Lightning's own loops resume with the next batch, wherever the checkpoint was saved."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import MLLMDataModule
from tests.data.loading.test_datamodule import Memory


class Recorder(L.LightningModule):
    """Remembers the prompts it is trained on."""

    def __init__(self, schedules: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.schedules = schedules
        self.seen: list[list[int]] = []

    def training_step(self, batch: MultimodalBatch, _: int) -> torch.Tensor:
        self.seen.append(batch.input_ids.flatten().tolist())
        loss: torch.Tensor = self.layer(torch.ones(1)).sum()
        return loss

    def validation_step(self, batch: MultimodalBatch, _: int) -> None:
        assert len(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.schedules:
            assert (
                self.trainer.estimated_stepping_batches == 10
            )  # Lightning makes the training loader for this
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAlways(L.Callback):
    """Saves a checkpoint behind every step, every validation and every epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: list[tuple[Path, int]] = []  # file, batches seen

    def save(self, trainer: L.Trainer, module: Recorder, moment: str) -> None:
        if not trainer.sanity_checking:
            path = self.folder / f"{len(self.saved)}-{moment}.ckpt"
            trainer.save_checkpoint(path)
            self.saved.append((path, len(module.seen)))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.save(trainer, pl_module, "step")

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.save(trainer, pl_module, "validation")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.save(trainer, pl_module, "epoch")


def trainer(*callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        val_check_interval=3,
        callbacks=list(callbacks),
    )


def data(checkpoint: str) -> MLLMDataModule:
    return Memory(checkpoint=checkpoint, batch_size=2)


@pytest.mark.parametrize("schedules", [False, True])
def test_training_resumes_from_any_checkpoint_with_the_next_batch(
    tiny_llava: str, tmp_path: Path, schedules: bool
) -> None:
    saver, whole = SaveAlways(tmp_path), Recorder(schedules)
    trainer(saver).fit(whole, datamodule=data(tiny_llava))

    assert len(whole.seen) == 10
    for path, seen in saver.saved:
        resumed = Recorder(schedules)
        trainer().fit(resumed, datamodule=data(tiny_llava), ckpt_path=path, weights_only=True)
        assert resumed.seen == whole.seen[seen:], path.name


def test_evaluating_a_checkpoint_leaves_later_training_whole(
    tiny_llava: str, tmp_path: Path
) -> None:
    saver, module, module_data = SaveAlways(tmp_path), Recorder(False), data(tiny_llava)
    trainer(saver).fit(module, datamodule=data(tiny_llava))

    trainer().validate(
        module,
        datamodule=module_data,
        ckpt_path=saver.saved[1][0],
        weights_only=True,
        verbose=False,
    )
    module.seen.clear()
    trainer().fit(module, datamodule=module_data)

    assert len(module.seen) == 10
