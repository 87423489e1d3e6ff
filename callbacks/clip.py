"""CLIP as a baseline: what its own text tower makes of the names of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch
from rich.console import Console

from lightning_mllm.callbacks import features, processes, trainer_state
from lightning_mllm.callbacks.evaluation_report import scores_table
from lightning_mllm.evaluation.clip import TEMPLATE, ClipClassifier, check_templates
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.probing.probes.scores import score
from lightning_mllm.store.files import write_json, write_rows
from lightning_mllm.tracking.loggers import log_metrics
from lightning_mllm.types import Sample


class ClipZeroShot(L.Callback):
    """Lets CLIP classify the test split after a test, as a baseline beside the model; nothing is trained.

    The samples are those that the model itself is tested on (`features.tapped_samples`), and all classes
    of the data are candidates. The pictures are the DataModule's own, upright and in RGB, prepared by CLIP's processor
    instead of the model's geometry. The folder of the evaluation gets `clip-predictions.csv` and the scores,
    `clip.json`.

    CLIP is loaded at set-up, also of a fit, which may end with a test. It runs in float32 on the trainer's device, and
    leaves it afterwards. With several processes each of them has its share, and the first one writes.

    Args:
        checkpoint: Hub id or folder of a dual encoder: CLIP, SigLIP.
        templates: What is said of a picture, with `{label}` in the place of the class name; several are averaged.
        revision: Branch, tag or commit of a hub id.
    """

    def __init__(self, checkpoint: str, templates: Sequence[str] = (TEMPLATE,), revision: str | None = None) -> None:
        check_templates(templates)
        self.checkpoint, self.templates, self.revision = checkpoint, tuple(templates), revision
        self._clip: ClipClassifier | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Load CLIP, and check that it can tell the classes of the data."""
        if stage in ("fit", "test"):
            self._loaded(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Classify, and write what came out."""
        module, clip = trainer_state.mllm(pl_module), self._loaded(trainer)
        share: list[tuple[str, int]] = []
        try:
            clip.to(module.device)
            for sample_ids, pictures in features.pictures(trainer, "test"):
                share += zip(sample_ids, clip.similarities(clip.prepare(pictures)).argmax(dim=1).tolist(), strict=True)
        finally:
            clip.to("cpu")
        said = dict(processes.of_all_processes(share))
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        samples = features.tapped_samples(trainer, "test")
        self._write(trainer, module, samples, [clip.names[said[sample.id]] for sample in samples], clip.names)

    def _write(
        self,
        trainer: L.Trainer,
        module: MLLMModule,
        samples: Sequence[Sample],
        predicted: Sequence[str],
        names: tuple[str, ...],
    ) -> None:
        folder, targets = trainer_state.evaluation_dir(trainer, module), [str(sample.label) for sample in samples]
        rows = zip((sample.id for sample in samples), targets, predicted, strict=True)
        write_rows(folder / "clip-predictions.csv", ["sample_id", "target", "prediction"], rows)
        result = score(names, *(torch.tensor([names.index(name) for name in side]) for side in (predicted, targets)))
        settings = {"checkpoint": self.checkpoint, "revision": self.revision, "templates": list(self.templates)}
        write_json(folder / "clip.json", {**settings, **result.summary()})
        logged = {f"{module.stage_name}/clip/{name}": getattr(result, name) for name in ("accuracy", "macro_f1")}
        log_metrics(trainer.loggers, logged, module.trained_steps)
        Console().print(scores_table(f"{folder.name}, {self.checkpoint}", {"clip": result}))

    def _loaded(self, trainer: L.Trainer) -> ClipClassifier:
        names = trainer_state.class_names(trainer, "their names are all that CLIP tells classes by")
        if self._clip is None or self._clip.names != names:
            self._clip = ClipClassifier.from_pretrained(self.checkpoint, names, self.templates, revision=self.revision)
        return self._clip
