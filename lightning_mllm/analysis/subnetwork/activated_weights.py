"""Activated weights: which weights of the LLM each task and modality uses, and how many of them are the same.

Per task, a kind of question, the first samples are a calibration set, once for each kind of tokens (`calibration.py`).
What of two sub-networks is the same is told by the IoU of their kept weights, per matrix and layer (Shukor and Cord,
arXiv 2405.16700): intersection over union, beside that of random masks of the same sparsity, (1 - s) / (1 + s).

How alike two sub-networks of one task are is the other end of the scale: with several `folds` each task has as many
sets of other samples. The IoU of two tasks is then the mean over folds, the first set of one task with the first of the
other and so on, with the 95 % t interval of independent sets; that of a task with itself is of sets 0 and 1, 2 and 3.

The calibrations stay in the folder, `<task>.<tokens>.<fold>.safetensors`: `PrunedAccuracy` makes sub-networks of them.
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
from lightning_mllm.analysis.subnetwork.calibration import Calibration, Context, Reading, Tokens, calibrate
from lightning_mllm.analysis.subnetwork.calibration_files import CalibrationRow, file_name
from lightning_mllm.analysis.subnetwork.matrices import matrices
from lightning_mllm.analysis.subnetwork.overlap import Key, overlaps, plots
from lightning_mllm.analysis.subnetwork.pruning import Pruning
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.statistics.picture_bootstrap import ALL, kind_of
from lightning_mllm.store.rows import Rows
from lightning_mllm.types import MultimodalBatch, Sample

_LOG = logging.getLogger(__name__)


class ActivatedWeights(Analysis):
    """Calibrates on each task, and compares what the tasks use.

    Args:
        pruning: How weights are scored, and how many are kept.
        tokens: Which tokens are counted; several are compared with each other.
        context: What they see: each other only, as in the paper, or the whole sequence (see `Reading`).
        sequential: Whether each block is pruned before the next one is calibrated.
        before_image: Whether text before the first image, such as the system's, counts as text.
        answers: Whether answers do.
        samples: How many of a set; a task that has fewer is calibrated on what it has, with a warning.
        folds: How many sets a task has.
        kind_depth: How many parts of a kind's name, between slashes, tell tasks apart; by default all. Samples without
            a kind are one task.
        label: A name of your own.
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
        self.name = label or self.default_name
        if self.name != Path(self.name).name:
            raise ConfigError(f"The label of an analysis names a folder, so it can't be {label!r}. Leave slashes out.")
        if min(samples, folds) < 1:
            raise ConfigError(f"ActivatedWeights needs a sample and a fold or more, not {samples} and {folds}.")
        if not tokens or len(set(tokens)) < len(tokens):
            raise ConfigError(f"ActivatedWeights.tokens needs one or more, each once; found {', '.join(tokens)}.")
        if not pruning.needs_calibration:
            raise ConfigError(
                f"ActivatedWeights.pruning has the score {pruning.score!r}, which looks at no activations. Use 'wanda' "
                "or 'activation'; PrunedAccuracy compares with the others."
            )
        self.readings = {each: Reading(each, context, sequential, before_image, answers) for each in tokens}
        self.pruning, self.samples, self.folds, self.kind_depth = pruning, samples, folds, kind_depth
        self._folder: Path | None = None
        self._source: Mapping[str, Any] = {}
        self._rows = Rows(CalibrationRow)
        self._sets: dict[Key, list[Calibration]] = {}  # one of each fold
        self._waiting: dict[str, list[MultimodalBatch]] = {}  # by task, the set that is not yet full
        self._seen: set[str] = set()
        self._backbone: Backbone | None = None
        self._autocast: torch.autocast | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the calibrations."""
        return {
            "pruning": asdict(self.pruning),
            "readings": [asdict(reading) for reading in self.readings.values()],
            "samples": self.samples,
            "folds": self.folds,
            "kind_depth": self.kind_depth,
        }

    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse a set in which no token would be counted: none of its samples has an image.

        Raises:
            ConfigError: There is one.
        """
        needing = [reading.tokens for reading in self.readings.values() if reading.needs_images]
        seeing: dict[str, list[bool]] = {}
        for sample in samples if needing else ():
            found = seeing.setdefault(self._task(sample.kind), [])
            if len(found) < self.samples * self.folds:
                found.append(bool(sample.images))
        for task, found in seeing.items():
            for fold in range(0, len(found), self.samples):
                if not any(found[fold : fold + self.samples]):
                    raise ConfigError(
                        f"{self.name}: none of the {len(found[fold : fold + self.samples])} samples of set "
                        f"{fold // self.samples} of task {task!r} has an image, so there are no {needing[0]} tokens to "
                        "count. Leave these samples out, or count others: tokens: [textual] with before_image: true."
                    )

    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path | None = None,
        source: Mapping[str, Any] | None = None,
        share: int = 0,
        answers: object = None,
    ) -> None:
        """Get ready, and read the calibrations that the folder has; see `Analysis.prepare`.

        Raises:
            ConfigError: What is in the folder was made otherwise, or there are several processes.
            CheckpointError: A calibration that was finished is missing or damaged.
        """
        if share > 0:
            raise ConfigError(
                f"{self.name} has all samples of a task at once, in one process. Set trainer.devices: 1; evaluations "
                "can have as many as you like."
            )
        self.reset()
        self._folder, self._source = folder, source or {}
        self._rows = Rows(CalibrationRow, folder, self._making, share)
        table = self._rows.table()
        finished = zip(table["task"].tolist(), table["fold"].tolist(), strict=True)
        for task, fold in sorted(set(finished)):
            assert folder is not None  # there are rows of an earlier run
            files = {tokens: folder / file_name(task, tokens, fold) for tokens in self.readings}
            self._take_in(task, {tokens: Calibration.load(path) for tokens, path in files.items()})

    def update(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Keep the samples that a set still lacks, and calibrate on those that are full.

        Raises:
            ConfigError: The model can't be pruned, or not like this.
        """
        if self._backbone is None:
            self.pruning.check_fits({matrix: module.weight for matrix, module in matrices(backbone).items()})
        self._backbone, device = backbone, backbone.model.device.type
        self._autocast = torch.autocast(
            device, dtype=torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device)
        )
        tasks: dict[str, list[int]] = {}
        for row, (sample_id, kind) in enumerate(zip(batch.sample_ids, batch.kinds, strict=True)):
            if sample_id not in self._seen:
                tasks.setdefault(self._task(kind), []).append(row)
        for task, rows in tasks.items():
            self._put(task, batch, rows)

    def settle(self) -> None:
        """Calibrate on sets that have stayed smaller than they were to be."""
        for task in list(self._waiting):
            found = sum(map(len, self._waiting[task]))
            _LOG.warning("%s: a set of task %r has %d samples, not %d.", self.name, task, found, self.samples)
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
            raise DataError(f"{self.name} has seen no sample. Check that the split is not empty.")
        sets = dict(sorted(self._sets.items()))
        values, coords = overlaps(self._backbone, sets)
        counted = {
            f"{task} ({tokens})": [{"samples": len(each.sample_ids), "tokens": each.tokens} for each in folds]
            for (task, tokens), folds in sets.items()
        }
        settings = {**self._making, "found": {"calibrations": counted}}
        return AnalysisResult(
            self.name, values, tuple(coords), coords, len(self._rows.done), settings, plots(coords["pair"])
        )

    def reset(self) -> None:
        """Forget all samples; what is in a folder stays there."""
        self._folder, self._source, self._rows = None, {}, Rows(CalibrationRow)
        self._sets, self._waiting, self._seen = {}, {}, set()
        self._backbone = self._autocast = None

    @property
    def _making(self) -> dict[str, Any]:
        return {"analysis": dict(self.settings), "source": dict(self._source)}

    def _task(self, kind: str | None) -> str:
        return kind_of(kind or "", self.kind_depth) or ALL

    def _fold(self, task: str) -> int:
        """Return the number of the task's next set."""
        return len(self._sets.get((task, next(iter(self.readings))), ()))

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
        for tokens, reading in self.readings.items():
            with self._autocast:
                found[tokens] = calibrate(self._backbone, batches, self.pruning, reading, task)
            if self._folder is not None:
                found[tokens].save(self._folder / file_name(task, tokens, fold))
        self._take_in(task, found)

    def _take_in(self, task: str, found: Mapping[Tokens, Calibration]) -> None:
        """Count a set, whose files are there."""
        fold, ids = self._fold(task), next(iter(found.values())).sample_ids
        for tokens, calibration in found.items():
            self._sets.setdefault((task, tokens), []).append(calibration)
        self._seen.update(ids)
        for sample_id in ids:
            if sample_id not in self._rows.done:
                self._rows.append(sample_id, [CalibrationRow(sample_id=sample_id, task=task, fold=fold)])
