"""Says how much a model sees that is not there: POPE of its answers, CHAIR of its captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L

from lightning_mllm.callbacks import features, processes, trainer_state
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.evaluation.decoding import continue_prompts
from lightning_mllm.evaluation.hallucination.chair import ChairMetrics, Mentions
from lightning_mllm.evaluation.hallucination.objects import ObjectVocabulary, read_objects
from lightning_mllm.evaluation.hallucination.pope import SAMPLINGS, SCORES, PopeMetrics, Reading, sampling_of
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.store.files import write_json, write_rows
from lightning_mllm.tracking.loggers import log_metrics, log_table
from lightning_mllm.types import MultimodalBatch

_CHAIR_SCORES = ("chair_i", "chair_s", "recall")


class PopeReport(L.Callback):
    """Writes POPE's scores after a test, `pope.json` in the folder of the evaluation.

    The questions are the samples whose kind is `random`, `popular` or `adversarial`, or ends with one of them behind a
    slash; their answer is yes or no. The answers are those that the evaluation scores anyway.

    Args:
        reading: What an answer is taken to say, see `PopeMetrics`.
    """

    def __init__(self, reading: Reading = "named") -> None:
        self._metric = PopeMetrics(reading=reading)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that there are questions of presence, and start anew."""
        kinds: tuple[str, ...] = trainer.datamodule.kinds  # type: ignore[attr-defined]
        if not any(map(sampling_of, kinds)):
            raise ConfigError(
                f"PopeReport needs samples of a kind that ends with {', '.join(SAMPLINGS)}; the data have "
                f"{', '.join(kinds) or 'no kinds'}. Name the kinds of questions so, or leave the callback out."
            )
        self._metric.to(pl_module.device).reset()

    def on_test_batch_end(  # noqa: PLR0917 - as Lightning calls it
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: MultimodalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the answers of a batch."""
        self._metric.update(outputs["answers"])

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write and log the scores."""
        if (result := self._metric.result()) is not None:
            summary = {"reading": self._metric.reading, **result.summary()}
            logged = {name: result.overall.value(name) for name in SCORES}
            _report(trainer, trainer_state.mllm(pl_module), "pope", summary, logged)


class ChairReport(L.Callback):
    """Lets the model describe the pictures of a test, and writes CHAIR's scores.

    The samples' (last) question asks for the caption. What is in a picture says a file, what its reference caption
    names, or, as in CHAIR, both; of several references of a picture the file says what they name. The folder of the
    evaluation gets `chair.json` and `captions.csv`.

    Args:
        vocabulary: File of objects and the words for them, see `evaluation.objects`.
        objects: CSV file of the objects in the pictures, see `read_objects`.
        from_references: Whether what the reference caption names is there.
        max_new_tokens: Length at which a caption is cut.
        unique: Whether an object counts once per caption, however often it is named.
    """

    def __init__(
        self,
        vocabulary: str,
        *,
        objects: str | None = None,
        from_references: bool = True,
        max_new_tokens: int = 512,
        unique: bool = False,
    ) -> None:
        if objects is None and not from_references:
            raise ConfigError("ChairReport must know what is in the pictures: set objects, or from_references: true.")
        if max_new_tokens < 1:
            raise ConfigError(f"ChairReport.max_new_tokens must be at least 1, not {max_new_tokens}.")
        self._vocabulary = ObjectVocabulary.read(vocabulary)
        self._annotated = None if objects is None else read_objects(objects, self._vocabulary)
        self.settings = {
            **{"vocabulary": vocabulary, "objects": objects, "from_references": from_references},
            **{"max_new_tokens": max_new_tokens, "unique": unique},
        }
        self.from_references, self.max_new_tokens = from_references, max_new_tokens
        self._metric = ChairMetrics(unique=unique)
        self._there: Mapping[str, frozenset[str]] = {}
        self._rows: list[list[str]] = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find out what is in the pictures, and start anew."""
        if trainer_state.label_set(trainer) is not None:
            raise ConfigError(
                "ChairReport asks for captions, but the samples have labels, and their prompt asks for those. Use data "
                "whose samples have a conversation, or leave the callback out."
            )
        there = {}
        for sample in features.tapped_samples(trainer, "test"):
            if not sample.images:
                raise DataError(
                    f"Sample {sample.id!r} has no image, so that all that its caption names would be hallucinated. "
                    "Give it one or leave it out."
                )
            if self._annotated is not None and sample.id not in self._annotated:
                raise DataError(
                    f"Sample {sample.id!r} is not in {self.settings['objects']}. Give it a row there, without objects "
                    "if the picture shows none of the vocabulary."
                )
            reference = sample.conversation[-1].text if self.from_references else ""
            annotated = self._annotated[sample.id] if self._annotated is not None else frozenset()
            there[sample.id] = annotated | {*self._vocabulary.named(reference)}
        self._there, self._rows = there, []
        self._metric.to(pl_module.device).reset()

    def on_test_batch_end(  # noqa: PLR0917 - as Lightning calls it
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: MultimodalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Describe the pictures of a batch, and count what is named."""
        module = trainer_state.mllm(pl_module)
        with module.adapted.autocast(module.device.type), module.adapted.edited(batch):
            tokens = continue_prompts(module.backbone.model, batch.prompts(), self.max_new_tokens)
        captions = [text.strip() for text in module.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        mentions = [
            Mentions(self._vocabulary.named(caption), self._there[sample_id])
            for sample_id, caption in zip(batch.sample_ids, captions, strict=True)
        ]
        self._metric.update(mentions)
        for sample_id, caption, each in zip(batch.sample_ids, captions, mentions, strict=True):
            self._rows.append([sample_id, caption, *map("; ".join, (each.named, each.hallucinated, each.missed))])

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write and log captions and scores."""
        module, result = trainer_state.mllm(pl_module), self._metric.result()
        rows = processes.of_all_processes(self._rows)
        if result is None:
            return
        logged = {name: getattr(result, name) for name in _CHAIR_SCORES}
        if _report(trainer, module, "chair", {**self.settings, **result.summary()}, logged):
            order = {sample_id: place for place, sample_id in enumerate(self._there)}
            rows.sort(key=lambda row: order[row[0]])
            columns = ["sample_id", "caption", "named", "hallucinated", "missed"]
            write_rows(trainer_state.evaluation_dir(trainer, module) / "captions.csv", columns, rows)
            log_table(trainer.loggers, f"{module.stage_name}/captions", columns, rows, module.trained_steps)


def _report(
    trainer: L.Trainer, module: MLLMModule, name: str, summary: Mapping[str, Any], logged: Mapping[str, float]
) -> bool:
    """Write and log scores, on the first process and not in a trial; return whether that was so."""
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return False
    write_json(trainer_state.evaluation_dir(trainer, module) / f"{name}.json", summary)
    metrics = {f"{module.stage_name}/{name}/{score}": value for score, value in logged.items()}
    log_metrics(trainer.loggers, metrics, module.trained_steps)
    return True
