"""CLIP as a baseline: which class its own text tower finds nearest to each picture."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch

from lightning_mllm.callbacks.processes import gather_from_processes
from lightning_mllm.callbacks.score_tables import score_table, write_score_summary
from lightning_mllm.callbacks.trainer_state import (
    trainer_class_names,
    trainer_evaluation_dir,
    trainer_mllm,
    trainer_writes_results,
)
from lightning_mllm.callbacks.watched_split import open_watched_pictures, watched_samples
from lightning_mllm.evaluation.clip import TEMPLATE, ClipClassifier, check_clip_templates
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.probing.probes.scores import score_probe
from lightning_mllm.progress import console
from lightning_mllm.store.files import write_csv_file
from lightning_mllm.types import Sample


class ClipZeroShot(L.Callback):
    """Lets CLIP classify the test split after a test, as a baseline; nothing is trained.

    The samples are those that the model itself is tested on, and all classes of the data are
    candidates. CLIP gets the pictures of the DataModule, upright and in RGB, through its own
    processor instead of the model's. The folder of the evaluation gets `clip-predictions.csv` and
    the scores, `clip.json`.

    CLIP is loaded at set-up, also of a fit, since a test may follow it. It runs in float32 on the
    trainer's device, and leaves the device afterwards. With several processes each classifies its
    share, and the first one writes.

    Args:
        checkpoint: Hub id or folder of a dual encoder such as CLIP or SigLIP.
        templates: Descriptions of a picture, with `{label}` in the place of the class name; the
            embeddings of several templates are averaged.
        revision: Branch, tag or commit of a hub id.
    """

    def __init__(
        self,
        checkpoint: str,
        templates: Sequence[str] = (TEMPLATE,),
        revision: str | None = None,
    ) -> None:
        check_clip_templates(templates)
        self.checkpoint, self.templates, self.revision = checkpoint, tuple(templates), revision
        self._clip: ClipClassifier | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Load CLIP, and check that it can classify the data."""
        if stage in ("fit", "test"):
            self._load(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Classify the test split, and write predictions and scores."""
        module, clip = trainer_mllm(pl_module), self._load(trainer)
        share: list[tuple[str, int]] = []  # sample id, class
        try:
            clip.to(module.device)
            for sample_ids, pictures in open_watched_pictures(trainer, "test"):
                classes = clip.similarities(clip.prepare(pictures)).argmax(dim=1).tolist()
                share += zip(sample_ids, classes, strict=True)
        finally:
            clip.to("cpu")
        predicted = dict(gather_from_processes(share))
        if trainer_writes_results(trainer):
            samples = watched_samples(trainer, "test")
            predictions = [clip.names[predicted[sample.id]] for sample in samples]
            self._write(trainer, module, samples, predictions, clip.names)

    def _write(
        self,
        trainer: L.Trainer,
        module: MLLMModule,
        samples: Sequence[Sample],
        predictions: Sequence[str],
        names: tuple[str, ...],
    ) -> None:
        folder = trainer_evaluation_dir(trainer, module)
        ids = [sample.id for sample in samples]
        targets = [str(sample.label) for sample in samples]
        write_csv_file(
            folder / "clip-predictions.csv",
            ["sample_id", "target", "prediction"],
            zip(ids, targets, predictions, strict=True),
        )
        result = score_probe(
            names, _class_indices(names, predictions), _class_indices(names, targets)
        )
        summary = {
            "checkpoint": self.checkpoint,
            "revision": self.revision,
            "templates": list(self.templates),
            **result.summary(),
        }
        logged = {"accuracy": result.accuracy, "macro_f1": result.macro_f1}
        write_score_summary(trainer, module, "clip", summary, logged)
        console.print(score_table(f"{folder.name}, {self.checkpoint}", {"clip": result}))

    def _load(self, trainer: L.Trainer) -> ClipClassifier:
        """Return CLIP with the classes of the data, loaded when they change."""
        names = trainer_class_names(trainer, "CLIP tells classes apart by their names only")
        if self._clip is None or self._clip.names != names:
            self._clip = ClipClassifier.from_pretrained(
                self.checkpoint, names, self.templates, revision=self.revision
            )
        return self._clip


def _class_indices(names: Sequence[str], labels: Sequence[str]) -> torch.Tensor:
    return torch.tensor([names.index(label) for label in labels])
