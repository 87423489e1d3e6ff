"""Accuracy of sub-networks: the same questions, answered by the whole LLM and by parts of it.

The calibrations of several tasks give their sub-networks and the alpha-SubNet, which is what all of
them keep (Shukor and Cord, arXiv 2405.16700). It is sparser than they are; the result says how
sparse. It is compared with random weights and with those of largest magnitude, as many of each row.
Tasks are kinds of questions, so the table of sub-networks against kinds says how well one task's
weights serve another.

The loss against the whole LLM, on the same questions, is given in points, and as the share of the
accuracy that is retained. All intervals are those of `statistics.shares`. Answers are scored by the
usual exact match. Do not ask samples that were calibrated on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from lightning_mllm.analysis.core.per_question import PerQuestionAnswer, QuestionAnalysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.subnetwork.calibration import Calibration
from lightning_mllm.analysis.subnetwork.calibration_files import load_calibration_files
from lightning_mllm.analysis.subnetwork.calibration_options import Tokens
from lightning_mllm.analysis.subnetwork.pruned import pruned
from lightning_mllm.analysis.subnetwork.subnetwork import SubNetwork, intersection, same_size
from lightning_mllm.analysis.subnetwork.summary import ALPHA, WHOLE, summarise_pruned_accuracy
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import ExactMatch, Match
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.progress import track
from lightning_mllm.types import Sample, Table

logger = logging.getLogger(__name__)

Comparison = Literal["tasks", "random", "magnitude"]


@dataclass(frozen=True, kw_only=True)
class PrunedAccuracyRow:
    """A question and a sub-network; a question that is left out has one row, without one.

    Attributes:
        sample_id: Id of the question.
        kind: Kind of the question.
        picture: Name of the picture that the question is about.
        correct: Whether the whole LLM answers right.
        measured: Whether sub-networks are asked.
        subnetwork: Name of the sub-network; `whole` for the LLM as it is.
        sparsity: Share of the weights that the sub-network prunes.
        right: Whether the sub-network answers right.
        answer: Answer of the sub-network, as a JSON string; the whole LLM's is not kept.
    """

    sample_id: str
    kind: str
    picture: str
    correct: bool
    measured: bool = True
    subnetwork: str = ""
    sparsity: float = nan
    right: bool = False
    answer: str = ""


class PrunedAccuracy(QuestionAnalysis[PrunedAccuracyRow]):
    """Asks sub-networks questions.

    Args:
        calibrations: Folder of an `ActivatedWeights` of this model, or several folders of different
            sparsities, for a curve. Sub-networks are called `alpha 0.5`, `alpha 0.5 random` and
            `of <task> 0.5`.
        tokens: Which of the folder's calibrations are used: those on the tokens of images, of text,
            or of both.
        compare: What the alpha-SubNet is compared with, besides the whole LLM.
        seed: Seed of the random weights.
        correct_only: Whether only questions count that the whole LLM answers right.
        match: When an answer is right, see `ExactMatch`.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default
            all.
        label: Name of the analysis and its folder, where one run has several of its class.
    """

    row_type = PrunedAccuracyRow
    default_name: ClassVar[str] = "pruned_accuracy"

    def __init__(
        self,
        *,
        calibrations: str | Sequence[str],
        tokens: Tokens = "perceptual",
        compare: Sequence[Comparison] = ("tasks", "random", "magnitude"),
        seed: int = 0,
        correct_only: bool = False,
        match: Match = "normalised",
        kind_depth: int | None = None,
        label: str = "",
    ) -> None:
        super().__init__(correct_only=correct_only, match=match, kind_depth=kind_depth, label=label)
        if not calibrations:
            raise ConfigError(
                "PrunedAccuracy.calibrations names no folder. Name that of an ActivatedWeights."
            )
        if unknown := set(compare) - set(get_args(Comparison)):
            raise ConfigError(
                f"PrunedAccuracy.compare has {sorted(unknown)}; it can have tasks, random and "
                "magnitude."
            )
        self.folders = [calibrations] if isinstance(calibrations, str) else list(calibrations)
        self.tokens, self.compare, self.seed = tokens, tuple(compare), seed
        self._made: dict[str, SubNetwork] = {}

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the rows; calibrations are identified by their contents.

        Raises:
            CheckpointError: The calibration of a task is missing or damaged.
        """
        digests: dict[str, dict[str, str]] = {}
        for sparsity, tasks in self._calibrations.items():
            digests[sparsity] = {task: each.digest for task, each in tasks.items()}
        return {
            "tokens": self.tokens,
            "calibrations": digests,
            "compare": list(self.compare),
            "seed": self.seed,
            **self.shared_settings,
        }

    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse samples without a kind, and calibrations that can't be read.

        A warning says how many of the samples were calibrated on.
        """
        named = {sample.id: sample.kind for sample in samples}
        self._check_kinds(named.items())
        calibrated: set[str] = set()
        for tasks in self._calibrations.values():
            for calibration in tasks.values():
                calibrated.update(calibration.sample_ids)
        known = sorted(named.keys() & calibrated)
        if known:
            logger.warning(
                "%s: %d of %d samples have ids of samples that were calibrated on (%s is one). If "
                "these are the same, ask another split.",
                self.name,
                len(known),
                len(named),
                known[0],
            )

    def check_model(self, backbone: Backbone) -> None:
        """Refuse a model that is not the one that was calibrated."""
        self._subnetworks(backbone)

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[PerQuestionAnswer]
    ) -> list[list[PrunedAccuracyRow]]:
        """Let all sub-networks answer."""
        rows = [[_row(question, WHOLE, 0.0, question.correct, "")] for question in questions]
        subnetworks = self._subnetworks(backbone).items()
        for name, subnetwork in track(subnetworks, "Sub-networks that answer a batch"):
            with pruned(backbone, subnetwork):
                answers = ExactMatch(match=self.match).evaluate(
                    backbone.model, self.tokenizer, batch
                )
            for own, question, said in zip(rows, questions, answers, strict=True):
                own.append(_row(question, name, subnetwork.sparsity, said.correct, said.answer))
        return rows

    def left_out(self, question: PerQuestionAnswer) -> PrunedAccuracyRow:
        """Return the row of a question that the whole LLM answers wrongly."""
        return PrunedAccuracyRow(**question.columns, measured=False)

    def summarise(self, table: Table, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the numbers per sub-network and kind."""
        return summarise_pruned_accuracy(self.name, table, settings, self.kind_depth)

    def reset(self) -> None:
        """Forget the sub-networks and all rows; rows in a folder stay there."""
        super().reset()
        self._made = {}

    @cached_property
    def _calibrations(self) -> dict[str, dict[str, Calibration]]:
        """Sparsity -> task -> calibration."""
        found: dict[str, dict[str, Calibration]] = {}
        for folder in self.folders:
            tasks = load_calibration_files(Path(folder), self.tokens)
            sparsity = str(next(iter(tasks.values())).pruning.sparsity)
            if sparsity in found:
                raise ConfigError(
                    f"PrunedAccuracy.calibrations names two folders of sparsity {sparsity}; "
                    f"{folder} is the second. Give each an analysis of its own, with a label."
                )
            found[sparsity] = tasks
        return found

    def _check_kinds(self, kinds: Iterable[tuple[str, str | None]]) -> None:
        for sample_id, kind in kinds:
            if not kind:
                raise ConfigError(
                    f"Sample {sample_id!r} has no kind, so its answer is not scored. Use data "
                    "whose samples have a kind; for classification, evaluate as always inside "
                    "`with pruned(backbone, subnetwork)`."
                )

    def _subnetworks(self, backbone: Backbone) -> dict[str, SubNetwork]:
        """Return the sub-networks that answer; they are made once."""
        if not self._made:
            self._made = dict(self._make(backbone))
        return self._made

    def _make(self, backbone: Backbone) -> Iterator[tuple[str, SubNetwork]]:
        for sparsity, calibrations in self._calibrations.items():
            tasks: dict[str, SubNetwork] = {}
            for task, calibration in calibrations.items():
                tasks[task] = calibration.subnetwork(backbone)
            name = f"{ALPHA} {sparsity}"
            alpha = intersection(list(tasks.values()), name)
            yield name, alpha
            for score in ("random", "magnitude"):
                if score in self.compare:
                    yield f"{name} {score}", same_size(alpha, backbone, score, self.seed)
            if "tasks" in self.compare:
                for task, subnetwork in tasks.items():
                    yield f"of {task} {sparsity}", subnetwork


def _row(
    question: PerQuestionAnswer, subnetwork: str, sparsity: float, right: bool, answer: str
) -> PrunedAccuracyRow:
    return PrunedAccuracyRow(
        **question.columns,
        subnetwork=subnetwork,
        sparsity=sparsity,
        right=right,
        answer=json.dumps(answer, ensure_ascii=False),
    )
