"""Activated weights: which weights of the LLM each task and modality uses, and how many they share.

The first samples of each task, a kind of question, are its calibration set. The model is calibrated
on it once for each kind of tokens (`calibration.py`). Two sub-networks are compared by the IoU of
their kept weights, per matrix and layer (Shukor and Cord, arXiv 2405.16700): intersection over
union, beside that of random masks of the same sparsity, (1 - s) / (1 + s).

The other end of the scale is how alike two sub-networks of one task are: with several `folds` each
task has as many sets, of different samples. The IoU of two tasks is then the mean over folds, the
first set of one task with the first of the other and so on, with the t interval of independent
sets. The IoU of a task with itself compares sets 0 and 1, 2 and 3, and so on.

The calibrations stay in the folder, `<task>.<tokens>.<fold>.safetensors`: `PrunedAccuracy` makes
sub-networks of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.subnetwork.calibration import Calibration, calibrate
from lightning_mllm.analysis.subnetwork.calibration_files import (
    CalibrationFileRow,
    calibration_file_name,
)
from lightning_mllm.analysis.subnetwork.calibration_options import (
    CalibrationOptions,
    Context,
    Tokens,
)
from lightning_mllm.analysis.subnetwork.matrices import matrices, names_left_whole
from lightning_mllm.analysis.subnetwork.overlap import Key, make_overlap_result, overlaps
from lightning_mllm.analysis.subnetwork.pruning import Pruning
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.statistics.question_table import ALL, kind_in_question_table
from lightning_mllm.store.rows import Rows
from lightning_mllm.types import Sample

logger = logging.getLogger(__name__)


class ActivatedWeights(Analysis):
    """Calibrates on each task, and compares what the tasks use.

    Args:
        pruning: How weights are scored, and how many are kept.
        tokens: Which tokens are counted; several are compared with each other.
        context: What these tokens attend to: each other only (`own`), as in the paper, or the whole
            sequence (`full`).
        sequential: Whether each layer is pruned before the next one is calibrated.
        before_image: Whether text before the first image, such as the system's, counts as text.
        answers: Whether the tokens of answers count as text.
        samples: Number of samples of a set. A task that has fewer is calibrated on what it has,
            with a warning.
        folds: Number of sets of each task.
        kind_depth: How many parts of a kind's name, between slashes, tell tasks apart; by default
            all. Samples without a kind are one task.
        label: Name of the analysis and its folder, where one run has several of its class.
    """

    default_name: ClassVar[str] = "activated_weights"

    def __init__(
        self,
        *,
        pruning: Pruning = Pruning(),
        tokens: Sequence[Tokens] = ("perceptual", "textual"),
        context: Context = "own",
        sequential: bool = True,
        before_image: bool = True,
        answers: bool = True,
        samples: int = 128,
        folds: int = 1,
        kind_depth: int | None = None,
        label: str = "",
    ) -> None:
        super().__init__(label=label)
        if min(samples, folds) < 1:
            raise ConfigError(
                f"ActivatedWeights needs a sample and a fold or more, not {samples} and {folds}."
            )
        if not tokens or len(set(tokens)) < len(tokens):
            raise ConfigError(
                f"ActivatedWeights.tokens needs one or more, each once; found {', '.join(tokens)}."
            )
        if not pruning.needs_calibration:
            raise ConfigError(
                f"ActivatedWeights.pruning has the score {pruning.score!r}, which looks at no "
                "activations. Use 'wanda' or 'activation'; PrunedAccuracy compares with the "
                "others."
            )
        self.options: dict[Tokens, CalibrationOptions] = {}
        for each in tokens:
            self.options[each] = CalibrationOptions(
                each, context, sequential, before_image, answers
            )
        self.pruning, self.kind_depth = pruning, kind_depth
        self.samples, self.folds = samples, folds
        self._folder: Path | None = None
        self._rows = Rows(CalibrationFileRow)
        self._sets: dict[Key, list[Calibration]] = {}  # one of each fold
        self._waiting: dict[str, list[MultimodalBatch]] = {}  # by task, the set that is not full
        self._seen: set[str] = set()
        self._backbone: Backbone | None = None
        self._autocast: torch.autocast | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the calibrations."""
        return {
            "pruning": asdict(self.pruning),
            "readings": [asdict(options) for options in self.options.values()],
            "samples": self.samples,
            "folds": self.folds,
            "kind_depth": self.kind_depth,
        }

    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse a set without images, if tokens are counted that need them.

        Raises:
            ConfigError: None of the samples of a set has an image.
        """
        needing = [each.tokens for each in self.options.values() if each.needs_images]
        with_images: dict[str, list[bool]] = {}
        for sample in samples if needing else ():
            found = with_images.setdefault(self._task_of(sample.kind), [])
            if len(found) < self.samples * self.folds:
                found.append(bool(sample.images))
        for task, found in with_images.items():
            for start in range(0, len(found), self.samples):
                of_set = found[start : start + self.samples]
                if not any(of_set):
                    raise ConfigError(
                        f"{self.name}: none of the {len(of_set)} samples of set "
                        f"{start // self.samples} of task {task!r} has an image, so there are no "
                        f"{needing[0]} tokens to count. Leave these samples out, or count others: "
                        "tokens: [textual] with before_image: true."
                    )

    def check_model(self, backbone: Backbone) -> None:
        """Refuse a model that can't be pruned to this pattern."""
        linear = matrices(backbone)
        self.pruning.check_fits({matrix: module.weight for matrix, module in linear.items()})

    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path | None = None,
        source: Mapping[str, Any] | None = None,
        rank: int = 0,
        answers: object = None,
    ) -> None:
        """Get ready, and read the calibrations that the folder has; see `Analysis.prepare`.

        Raises:
            ConfigError: What is in the folder was created with different settings, or there are
                several processes.
            CheckpointError: A calibration that was finished is missing or damaged.
        """
        if rank > 0:
            raise ConfigError(
                f"{self.name} needs all samples of a task in one process. Set trainer.devices: 1; "
                "evaluations can have as many as you like."
            )
        self.reset()
        self._tokenizer, self._source = tokenizer, source or {}
        self._folder = folder
        self._rows = Rows(CalibrationFileRow, folder, self.making, rank)
        table = self._rows.table()
        finished = zip(table["task"].tolist(), table["fold"].tolist(), strict=True)
        for task, fold in sorted(set(finished)):
            assert folder is not None  # there are rows of an earlier run
            found: dict[Tokens, Calibration] = {}
            for tokens in self.options:
                found[tokens] = Calibration.load(folder / calibration_file_name(task, tokens, fold))
            self._add(task, found)

    def update(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Keep the samples that a set still lacks, and calibrate on those that are full.

        Raises:
            ConfigError: The model can't be pruned, or not to this pattern.
        """
        if self._backbone is not backbone:
            self.check_model(backbone)
            self._warn_of_whole(backbone)
        self._backbone = backbone
        device = backbone.model.device.type
        self._autocast = torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
        )
        tasks: dict[str, list[int]] = {}
        for row, (sample_id, kind) in enumerate(zip(batch.sample_ids, batch.kinds, strict=True)):
            if sample_id not in self._seen:
                tasks.setdefault(self._task_of(kind), []).append(row)
        for task, rows in tasks.items():
            self._put(task, batch, rows)

    def _warn_of_whole(self, backbone: Backbone) -> None:
        if whole := names_left_whole(backbone):
            logger.warning(
                "%s: weights that are not of linear layers are never pruned: %s.",
                self.name,
                ", ".join(whole),
            )

    def settle(self) -> None:
        """Calibrate on sets that are not full, and warn of them."""
        for task in list(self._waiting):
            found = sum(map(len, self._waiting[task]))
            logger.warning(
                "%s: a set of task %r has %d samples, not %d.", self.name, task, found, self.samples
            )
            self._calibrate(task)

    def merge(self) -> None:
        """Make one file of the rows."""
        self.settle()
        self._rows.merge()

    def compute(self) -> AnalysisResult:
        """Return what the tasks share; the model must be as it was.

        Raises:
            DataError: There was no sample.
        """
        self.merge()
        if self._backbone is None or not self._sets:
            raise DataError(f"{self.name} got no sample. Check that the split is not empty.")
        sets = dict(sorted(self._sets.items()))
        values, coords = overlaps(self._backbone, sets)
        counted: dict[str, list[dict[str, int]]] = {}
        for (task, tokens), folds in sets.items():
            counted[f"{task} ({tokens})"] = [each.counts() for each in folds]
        settings = {**self.making, "found": {"calibrations": counted}}
        n = len(self._rows.done)
        return make_overlap_result(self.name, values, coords, n, settings)

    def reset(self) -> None:
        """Forget all samples; what is in a folder stays there."""
        self._folder, self._source, self._rows = None, {}, Rows(CalibrationFileRow)
        self._sets, self._waiting, self._seen = {}, {}, set()
        self._backbone = self._autocast = None

    def _task_of(self, kind: str | None) -> str:
        return kind_in_question_table(kind or "", self.kind_depth) or ALL

    def _fold(self, task: str) -> int:
        """Return the number of the task's next set."""
        return len(self._sets.get((task, next(iter(self.options))), ()))

    def _put(self, task: str, batch: MultimodalBatch, rows: list[int]) -> None:
        """Put samples into the task's sets, as long as one is open."""
        while rows and self._fold(task) < self.folds:
            waiting = self._waiting.setdefault(task, [])
            lacking = self.samples - sum(map(len, waiting))
            waiting.append(batch.take(rows[:lacking]).to("cpu"))
            self._seen.update(waiting[-1].sample_ids)
            if len(rows) >= lacking:
                self._calibrate(task)
            rows = rows[lacking:]

    def _calibrate(self, task: str) -> None:
        """Calibrate on the set that waits; it counts when all of its files are there."""
        assert self._backbone is not None
        assert self._autocast is not None
        batches, fold = self._waiting.pop(task), self._fold(task)
        found: dict[Tokens, Calibration] = {}
        for tokens, options in self.options.items():
            with self._autocast:
                found[tokens] = calibrate(self._backbone, batches, self.pruning, options, task)
            if self._folder is not None:
                found[tokens].save(self._folder / calibration_file_name(task, tokens, fold))
        self._add(task, found)

    def _add(self, task: str, found: Mapping[Tokens, Calibration]) -> None:
        """Add a set whose files are written."""
        fold, ids = self._fold(task), next(iter(found.values())).sample_ids
        for tokens, calibration in found.items():
            self._sets.setdefault((task, tokens), []).append(calibration)
        self._seen.update(ids)
        new = {}
        for sample_id in ids:
            if sample_id not in self._rows.done:
                new[sample_id] = [CalibrationFileRow(sample_id=sample_id, task=task, fold=fold)]
        self._rows.append(new)
