"""Short real fits with the callbacks that follow the features."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from PIL import Image
from torch import Tensor

from lightning_mllm.callbacks import ProbeEachEpoch, RepresentationDrift, SaveFeatures
from lightning_mllm.data import MLLMDataModule
from lightning_mllm.evaluation import Scorer
from lightning_mllm.models.freeze import FreezePolicy, ProjectorOnly
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.optimisation.schedule import LearningRates
from lightning_mllm.probing import FeatureCache, MLPProbe, NearestCentroid, Point, Training
from lightning_mllm.types import Sample
from tests.callbacks.conftest import make_trainer
from tests.support.command_line import picture

SEEDS = (0, 1)
HALVES = 3
POINTS = (Point("pre"), Point("post"))
PROBES = (MLPProbe(training=Training(max_epochs=2), control=True, label="mlp"), NearestCentroid())


class Blotches(MLLMDataModule):
    """Pictures of noise around one of two greys."""

    def load(self, split: str) -> list[Sample]:
        def blotch(index: int) -> Image.Image:
            return Image.blend(
                picture(index), Image.new("RGB", (24, 20), ("black", "white")[index % 2]), 0.8
            )

        first = {"train": 0, "val": 16, "test": 24}[split]
        count = 16 if split == "train" else 8
        return [
            Sample(
                id=f"{split}-{index}", images=[blotch(index)], label=("dark", "light")[index % 2]
            )
            for index in range(first, first + count)
        ]


class Described(Blotches):
    """The same pictures, more of them, with fields: a class, a number, and one that is constant."""

    def load(self, split: str) -> list[Sample]:
        first = {"train": 0, "val": 100, "test": 200}[split]
        found = []
        for index in range(first, first + 24):
            grey = ("black", "white")[index % 2]
            image = Image.blend(picture(index), Image.new("RGB", (24, 20), grey), 0.8)
            found.append(
                Sample(
                    id=f"{split}-{index}",
                    images=[image],
                    label=("dark", "light")[index % 2],
                    fields={"third": "abc"[index % 3], "light": index % 2 + 0.5, "same": "x"},
                )
            )
        return found


class Keep(L.Callback):
    """Writes a checkpoint, `step3.ckpt`, in the middle of the second epoch."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "step3.ckpt")


@dataclass
class Run:
    """A run that can go on."""

    folder: Path
    trainer: L.Trainer
    module: MLLMModule
    data: MLLMDataModule

    def projector(self) -> dict[str, Tensor]:
        """Return a copy of its weights."""
        return {
            name: each.detach().clone()
            for name, each in self.module.backbone.projector.named_parameters()
        }

    def fit(self, **options: Any) -> Run:
        """Train, and return itself."""
        self.trainer.fit(self.module, datamodule=self.data, **options)
        return self

    def test(self, **options: Any) -> Run:
        """Test, and return itself."""
        self.trainer.test(self.module, datamodule=self.data, verbose=False, **options)
        return self

    def rows(self, name: str) -> list[dict[str, str]]:
        """Return the rows of a CSV file."""
        with (self.folder / name).open(newline="") as file:
            return list(csv.DictReader(file))


def make_run(
    checkpoint: str,
    folder: Path,
    callbacks: Sequence[L.Callback],
    policy: FreezePolicy = ProjectorOnly(),
    eval_batch_size: int = 8,
    *,
    scorers: Sequence[Scorer] = (),
    data: type[MLLMDataModule] = Blotches,
    **options: Any,
) -> Run:
    """Make a run of two steps per epoch, over two epochs unless the options say otherwise."""
    chosen: dict[str, Any] = {"max_epochs": 2, "max_steps": -1, "limit_val_batches": 1.0, **options}
    trainer = make_trainer(folder, list(callbacks), **chosen)
    module = MLLMModule(
        checkpoint,
        policy=policy,
        learning_rates=LearningRates(projector=0.1, lora=0.1),
        scorers=scorers,
    )
    return Run(
        folder,
        trainer,
        module,
        data(checkpoint=checkpoint, batch_size=8, eval_batch_size=eval_batch_size),
    )


def all_callbacks(folder: Path) -> list[L.Callback]:
    """Return one of each, with a cache that they share."""
    cache = FeatureCache(folder / "cache")
    return [
        ProbeEachEpoch(points=POINTS, probes=PROBES, seeds=SEEDS, halves=HALVES, cache=cache),
        SaveFeatures(points=POINTS, cache=cache),
        RepresentationDrift(cache=cache),
        Keep(),
    ]


def quick_probes(**options: Any) -> ProbeEachEpoch:
    """Return the callback with a probe that takes no time."""
    return ProbeEachEpoch(probes=[NearestCentroid()], seeds=[0], **options)


def moments(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, str, str]]:
    """Return epoch, step and stage of the rows, each once."""
    return list(dict.fromkeys((row["epoch"], row["step"], row["stage"]) for row in rows))
