"""Two processes of a Lightning launch that set datasets up; each writes what it has."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch

from lightning_mllm.data import HFDataset, ImageFolder, LlavaJson
from lightning_mllm.data.loading import set_up
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.errors import UserError


class Reader(L.LightningModule):
    """Trains one number, and notes which samples it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[str]] = {"train": [], "val": []}

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        self.seen["train"] += batch.sample_ids
        return self.number * 1

    def validation_step(self, batch: Any, _: int) -> None:
        self.seen["val"] += batch.sample_ids

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def make_datasets(folder: Path, checkpoint: str) -> dict[str, MLLMDataModule]:
    """Return datasets of all kinds whose samples are arrays."""
    options: dict[str, Any] = {"checkpoint": checkpoint, "batch_size": 4}
    images = str(folder / "images")
    rows = str(folder / "rows" / "rows.json")
    return {
        "folder": ImageFolder(root=images, **options),
        "json": LlavaJson(train=rows, **options, on_bad_row="skip"),
        "table": HFDataset(path=str(folder / "table"), **options, on_bad_row="skip"),
        "refused": HFDataset(path=str(folder / "table"), **options),
        "gone": LlavaJson(train=str(folder / "gone.json"), **options),
        "long": ImageFolder(root=images, **options, max_length=20),
    }


def fit(data: MLLMDataModule) -> dict[str, Any]:
    """Train on a dataset, ask for another split on one process alone, and return what was found."""
    settings: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, num_sanity_val_steps=0,
        use_distributed_sampler=False, **settings,
    )  # fmt: skip
    reader = Reader()
    try:
        trainer.fit(reader, data)
    except UserError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if trainer.global_rank == 0:
        data.plain_dataloader("test" if isinstance(data, ImageFolder) else "train")
    samples = {split: cast("Any", data.samples[split]) for split in ("train", "val")}
    return {
        "seen": reader.seen,
        "digests": {split: part.digest() for split, part in samples.items()},
        "samples": {split: [sample.id for sample in part] for split, part in samples.items()},
        "bad": data.left_out_metrics("train", "val"),
    }


def main() -> None:
    """Fit on each dataset, and write what this process has."""
    logging.disable(logging.WARNING)
    set_up.KEPT_FROM, set_up._PATIENCE = 1, 0.05
    folder, checkpoint, run = sys.argv[1:]
    datasets = make_datasets(Path(folder), checkpoint)
    found = {name: fit(data) for name, data in datasets.items()}
    rank = os.environ["RANK"]
    (Path(folder) / f"{run}-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
