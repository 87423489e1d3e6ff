"""Lets the model describe pictures; scores what it names that is not there, and what people say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.callbacks.processes import gather_from_processes
from lightning_mllm.callbacks.score_tables import write_score_summary
from lightning_mllm.callbacks.trainer_state import (
    trainer_evaluation_dir,
    trainer_label_set,
    trainer_mllm,
    trainer_writes_results,
)
from lightning_mllm.callbacks.watched_split import watched_samples
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.evaluation.decoding import decode_answers
from lightning_mllm.evaluation.hallucination.chair import ChairMetrics, Mentions
from lightning_mllm.evaluation.hallucination.objects import ObjectVocabulary, read_objects
from lightning_mllm.evaluation.open_answers.cider import read_references, score_captions
from lightning_mllm.evaluation.prompt_pass import PromptPass
from lightning_mllm.store.files import write_csv_file
from lightning_mllm.tracking.loggers import log_table
from lightning_mllm.types import Sample

_COLUMNS = ["sample_id", "caption", "named", "hallucinated", "missed"]
_LOGGED = ("chair_i", "chair_s", "recall")


class ChairReport(L.Callback):
    """Lets the model describe the pictures of a test, and writes CHAIR's scores.

    The (last) question of each sample asks for the caption. The objects in a picture are those in
    a file, those that its reference captions name, or both, as in CHAIR. The folder of the
    evaluation gets `chair.json` and `captions.csv`, and with `references` also `cider.json`.

    Args:
        vocabulary: File of objects and the words for them, see `evaluation.objects`.
        objects: CSV file of the objects in the pictures, see `read_objects`.
        references: JSON file, sample id -> list of captions by people, which are its reference
            captions then, and which CIDEr-D compares the model's caption with; by default the
            sample's own answer is its only reference, and CIDEr-D is not computed.
        from_references: Whether the objects named by reference captions are in the picture.
        max_new_tokens: Greatest length of a caption, in tokens.
        unique: Whether an object counts once per caption, however often it is named.
    """

    def __init__(
        self,
        vocabulary: str,
        *,
        objects: str | None = None,
        references: str | None = None,
        from_references: bool = True,
        max_new_tokens: int = 512,
        unique: bool = False,
    ) -> None:
        if objects is None and not from_references:
            raise ConfigError(
                "ChairReport must know what is in the pictures: set objects, or from_references: "
                "true."
            )
        if max_new_tokens < 1:
            raise ConfigError(
                f"ChairReport.max_new_tokens must be at least 1, not {max_new_tokens}."
            )
        self._vocabulary = ObjectVocabulary.read(vocabulary)
        self._annotated = None if objects is None else read_objects(objects, self._vocabulary)
        self._references = None if references is None else read_references(references)
        self.settings: dict[str, Any] = {
            "vocabulary": vocabulary,
            "objects": objects,
            "references": references,
            "from_references": from_references,
            "max_new_tokens": max_new_tokens,
            "unique": unique,
        }
        self.from_references, self.max_new_tokens = from_references, max_new_tokens
        self._metric = ChairMetrics(unique=unique)
        self._present: Mapping[str, frozenset[str]] = {}  # sample id -> objects in its picture
        self._pictures: Mapping[str, str] = {}  # sample id -> its picture
        self._rows: list[list[str]] = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find out what is in the pictures, and forget an earlier test."""
        if trainer_label_set(trainer) is not None:
            raise ConfigError(
                "ChairReport asks for captions, but the samples have labels, and their prompt "
                "asks for those. Use data whose samples have a conversation, or leave the "
                "callback out."
            )
        samples = watched_samples(trainer, "test")
        self._present = {sample.id: self._objects_in(sample) for sample in samples}
        self._pictures = {sample.id: sample.picture or sample.id for sample in samples}
        if self._references is not None and len({*self._pictures.values()}) < 2:
            raise DataError(
                "CIDEr-D weighs words by how few pictures they are said of, and all samples are of "
                "one picture. Test with two pictures or more, or leave `references` out."
            )
        self._rows = []
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
        """Describe the pictures of a batch, and count the objects that are named."""
        module = trainer_mllm(pl_module)
        with module.adapted.autocast(module.device.type), module.adapted.edited(batch):
            asked = PromptPass(module.backbone.model, batch)
            tokens = decode_answers(asked, self.max_new_tokens)
        texts = module.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        counted = []
        for sample_id, text in zip(batch.sample_ids, texts, strict=True):
            caption = text.strip()
            mentions = Mentions(self._vocabulary.named(caption), self._present[sample_id])
            counted.append(mentions)
            objects = (mentions.named, mentions.hallucinated, mentions.missed)
            self._rows.append([sample_id, caption, *map("; ".join, objects)])
        self._metric.update(counted)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write and log captions and scores."""
        module, result = trainer_mllm(pl_module), self._metric.result()
        rows = gather_from_processes(self._rows)
        if result is None or not trainer_writes_results(trainer):
            return
        logged = {name: getattr(result, name) for name in _LOGGED}
        write_score_summary(trainer, module, "chair", {**self.settings, **result.summary()}, logged)
        order = {sample_id: index for index, sample_id in enumerate(self._present)}
        rows.sort(key=lambda row: order[row[0]])
        write_csv_file(trainer_evaluation_dir(trainer, module) / "captions.csv", _COLUMNS, rows)
        key = f"{module.stage_name}/captions"
        log_table(trainer.loggers, key, _COLUMNS, rows, module.trained_steps)
        if self._references is not None:
            captions = {row[0]: row[1] for row in rows}
            pictures = [self._pictures[name] for name in captions]
            scores = score_captions(captions, self._references, pictures).summary()
            logged = {"cider_d": scores["cider_d"]}
            write_score_summary(trainer, module, "cider", {**self.settings, **scores}, logged)

    def _objects_in(self, sample: Sample) -> frozenset[str]:
        """Return the objects in the picture of a sample."""
        if not sample.images:
            raise DataError(
                f"Sample {sample.id!r} has no image, so every object that its caption names would "
                "count as hallucinated. Give it one or leave it out."
            )
        if self._annotated is not None and sample.id not in self._annotated:
            raise DataError(
                f"Sample {sample.id!r} is not in {self.settings['objects']}. Give it a row there, "
                "without objects if the picture shows none of the vocabulary."
            )
        annotated = frozenset() if self._annotated is None else self._annotated[sample.id]
        own: tuple[str, ...] = (sample.conversation[-1].text,)
        if self._references is not None:
            if sample.id not in self._references:
                raise DataError(
                    f"Sample {sample.id!r} is not in {self.settings['references']}. Give it a list "
                    "of captions there, or leave `references` out."
                )
            own = self._references[sample.id]
        named = self._vocabulary.named(" . ".join(own)) if self.from_references else ()
        return annotated | {*named}
