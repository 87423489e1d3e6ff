"""Accuracy of sub-networks: the same questions, by the usual exact match, answered by the whole LLM and by parts of it.

From the calibrations of several tasks come their sub-networks and the alpha-SubNet, what all of them keep (Shukor and
Cord, arXiv 2405.16700). It is sparser than they are, and how sparse stands with the numbers. To it are compared random
weights and those of largest magnitude, as many of each row. Tasks are kinds of questions, so the table of sub-networks
against kinds says how far one task's weights serve another.

What is lost against the whole LLM, on the same questions, is told in points, and as the share that is retained. All
intervals are those of `evaluation.shares`. Samples that were calibrated on should not be asked.
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

import numpy as np

from lightning_mllm.analysis.core.per_question import Question, QuestionAnalysis
from lightning_mllm.analysis.core.result import AnalysisResult, Floats, Plot
from lightning_mllm.analysis.subnetwork.calibration import Calibration, Tokens
from lightning_mllm.analysis.subnetwork.calibration_files import load_calibrations
from lightning_mllm.analysis.subnetwork.mask import SubNetwork, intersection, pruned, same_size
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import ExactMatch, Match
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.statistics.interval import STATISTICS, no_numbers
from lightning_mllm.statistics.missing import Integers
from lightning_mllm.statistics.picture_bootstrap import share, share_difference, share_ratio
from lightning_mllm.statistics.question_table import Kept, count_questions, pivot
from lightning_mllm.types import MultimodalBatch, Sample, Table

_LOG = logging.getLogger(__name__)

Comparison = Literal["tasks", "random", "magnitude"]

WHOLE, ALPHA = "whole", "alpha"
MEASURES = ("accuracy_percent", "change_points", "retained_percent")


@dataclass(frozen=True, kw_only=True)
class PrunedRow:
    """A question and a sub-network; a question that is left out has one row, without one.

    Attributes:
        sample_id: The question's.
        kind: Its kind.
        picture: Which picture it is about.
        correct: Whether the whole LLM answers it right.
        measured: Whether it is put to sub-networks.
        subnetwork: Name of the sub-network; `whole` for the LLM as it is.
        sparsity: Share of the weights that it prunes.
        right: Whether it answers right.
        answer: What it says, as a JSON string; that of the whole LLM is not kept.
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


class PrunedAccuracy(QuestionAnalysis[PrunedRow]):
    """Puts questions to sub-networks.

    Args:
        calibrations: Folder that an `ActivatedWeights` of this model has left behind; several, of other sparsities,
            for a curve. Sub-networks are called `alpha 0.5`, `alpha 0.5 random` and `of <task> 0.5`.
        tokens: Which of its calibrations: those on images' tokens, on text, or on both.
        compare: With what the alpha-SubNet is compared, besides the whole LLM.
        seed: Of the random weights.
        correct_only: Whether only questions count that the whole LLM answers right.
        match: When an answer is right, see `ExactMatch`.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default all.
        label: A name of your own.
    """

    row_type = PrunedRow
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
        super().__init__(correct_only=correct_only, match=match, label=label)
        if not calibrations:
            raise ConfigError("PrunedAccuracy.calibrations names no folder. Name that of an ActivatedWeights.")
        if unknown := set(compare) - set(get_args(Comparison)):
            raise ConfigError(f"PrunedAccuracy.compare has {sorted(unknown)}; it can have tasks, random and magnitude.")
        self.folders = [calibrations] if isinstance(calibrations, str) else list(calibrations)
        self.tokens, self.compare, self.seed = tokens, tuple(compare), seed
        self.kind_depth = kind_depth
        self._made: dict[str, SubNetwork] = {}

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the rows; the calibrations are told by their contents.

        Raises:
            CheckpointError: One of a task is missing or damaged.
        """
        return {
            "tokens": self.tokens,
            "calibrations": {
                sparsity: {task: calibration.digest for task, calibration in tasks.items()}
                for sparsity, tasks in self._calibrations.items()
            },
            "compare": list(self.compare),
            "seed": self.seed,
            "correct_only": self.correct_only,
            "match": self.match,
        }

    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse samples without a kind and calibrations that can't be read; say how many were calibrated on."""
        named = {sample.id: sample.kind for sample in samples}
        self._check_kinds(named.items())
        calibrated = [each for tasks in self._calibrations.values() for each in tasks.values()]
        if known := sorted(named.keys() & {sample_id for each in calibrated for sample_id in each.sample_ids}):
            _LOG.warning(
                "%s: %d of %d samples have ids of samples that were calibrated on (%s is one). If these are the same, "
                "ask another split.",
                self.name,
                len(known),
                len(named),
                known[0],
            )

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[Question]
    ) -> list[list[PrunedRow]]:
        """Let all sub-networks answer."""
        assert self._tokenizer is not None  # `update` has seen to it
        rows = [[_row(question, WHOLE, 0.0, question.correct, "")] for question in questions]
        for name, subnetwork in self._subnetworks(backbone).items():
            with pruned(backbone, subnetwork):
                answers = ExactMatch(match=self.match).evaluate(backbone.model, self._tokenizer, batch)
            for own, question, said in zip(rows, questions, answers, strict=True):
                own.append(_row(question, name, subnetwork.sparsity, said.correct, said.answer))
        return rows

    def left_out(self, question: Question) -> PrunedRow:
        """Return the row of a question that the whole LLM answers wrongly."""
        return PrunedRow(**_named(question), measured=False)

    def summarise(self, table: Table, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the numbers per sub-network and kind."""
        measured = table["measured"]
        kept = Kept.of(table, self.kind_depth)
        names = sorted(set(table["subnetwork"][measured].tolist()), key=_place)
        coords: dict[str, tuple[Any, ...]] = {
            "measure": MEASURES,
            "subnetwork": tuple(names),
            "kind": tuple(kept.groups),
            "statistic": STATISTICS,
        }
        values = no_numbers(coords)
        right = pivot(table, "right", {"subnetwork": names}, kept.ids, measured)
        for g, rows in enumerate(kept.groups.values() if len(kept.ids) else ()):
            _, pictures = np.unique(kept.pictures[rows], return_inverse=True)
            values[:, :, g] = _numbers(right[rows], names.index(WHOLE), pictures)
        sparsities = {name: float(table["sparsity"][table["subnetwork"] == name][0]) for name in names}
        more = {
            "kind_depth": self.kind_depth,
            "found": {
                "questions": count_questions(table, self.kind_depth),
                "pictures": kept.count_pictures(),
                "sparsity": sparsities,
            },
        }
        return AnalysisResult(
            self.name, values, tuple(coords), coords, len(kept.ids), {**settings, **more}, _plots(names)
        )

    def reset(self) -> None:
        """Forget all rows, those in a folder stay there, and the sub-networks."""
        super().reset()
        self._made = {}

    @cached_property
    def _calibrations(self) -> dict[str, dict[str, Calibration]]:
        """Sparsity -> task -> calibration."""
        found: dict[str, dict[str, Calibration]] = {}
        for folder in self.folders:
            tasks = load_calibrations(Path(folder), self.tokens)
            sparsity = str(next(iter(tasks.values())).pruning.sparsity)
            if sparsity in found:
                raise ConfigError(
                    f"PrunedAccuracy.calibrations names two folders of sparsity {sparsity}; {folder} is the second. "
                    "Give each an analysis of its own, with a label."
                )
            found[sparsity] = tasks
        return found

    def _check_kinds(self, kinds: Iterable[tuple[str, str | None]]) -> None:
        if (nameless := next((sample_id for sample_id, kind in kinds if not kind), None)) is not None:
            raise ConfigError(
                f"Sample {nameless!r} has no kind, so its answer is not scored. Use data whose samples have a kind; "
                "for classification, evaluate as always inside `with pruned(backbone, subnetwork)`."
            )

    def _subnetworks(self, backbone: Backbone) -> dict[str, SubNetwork]:
        """Return what is asked, made once."""
        if not self._made:
            self._made = dict(self._make(backbone))
        return self._made

    def _make(self, backbone: Backbone) -> Iterator[tuple[str, SubNetwork]]:
        for sparsity, calibrations in self._calibrations.items():
            tasks = {task: calibration.subnetwork(backbone) for task, calibration in calibrations.items()}
            name = f"{ALPHA} {sparsity}"
            alpha = intersection(list(tasks.values()), name)
            yield name, alpha
            for score in ("random", "magnitude"):
                if score in self.compare:
                    yield f"{name} {score}", same_size(alpha, backbone, score, self.seed)
            if "tasks" in self.compare:
                yield from ((f"of {task} {sparsity}", subnetwork) for task, subnetwork in tasks.items())


def _numbers(right: Floats, whole: int, pictures: Integers) -> Floats:
    """Return the statistics of (questions, sub-networks) answers, (measures, sub-networks, statistics)."""
    dense = np.repeat(right[:, whole : whole + 1], right.shape[1], axis=1)
    change, retained = (compare(right, dense, pictures, 100) for compare in (share_difference, share_ratio))
    for own in (change, retained):
        own[whole, 1:3] = own[whole, 0]  # against itself
    return np.stack([share(right, pictures, 100), change, retained])


def _row(question: Question, subnetwork: str, sparsity: float, right: bool, answer: str) -> PrunedRow:
    return PrunedRow(
        **_named(question),
        subnetwork=subnetwork,
        sparsity=sparsity,
        right=right,
        answer=json.dumps(answer, ensure_ascii=False),
    )


def _named(question: Question) -> dict[str, Any]:
    return {name: getattr(question, name) for name in ("sample_id", "kind", "picture", "correct")}


def _place(name: str) -> tuple[bool, bool, str]:
    """The whole LLM first, what is compared with it, then the tasks."""
    return name != WHOLE, not name.startswith(ALPHA), name


def _plots(names: Sequence[str]) -> tuple[Plot, ...]:
    if not names:
        return ()
    return (
        Plot(
            "transfer",
            "heat map",
            x="kind",
            y="subnetwork",
            shown={name: name for name in names},
            fixed={},
            xlabel="Kind of question",
            label="Percent or points",
            title="What parts of the LLM answer",
        ),
    )
