"""How much can be skipped: accuracy, operations and time over a grid of shares, first layers and computations.

The experiment of Shukor and Cord, "Implicit Multimodal Alignment" (NeurIPS 2024, arXiv 2405.16700, figure 11): a share
of the visual (or textual) tokens goes around the FFN of all layers from `start` on; and, as in "Skipping Computations
in Multimodal LLMs" (arXiv 2410.09454), around attention or whole blocks. Answers are generated with the skip in place,
and scored by exact match. Operations are counted, and time measured, while the samples go through the decoder: what is
skipped is really not done, but a share of the operations is not yet the same share of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import nan
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.analysis.core.analysis import STATISTICS
from lightning_mllm.analysis.core.per_question import Question, QuestionAnalysis
from lightning_mllm.analysis.core.result import AnalysisResult, Floats, Plot
from lightning_mllm.analysis.skipping.context import skipped
from lightning_mllm.analysis.skipping.costs import DecoderPass, warn_of_nothing_skipped
from lightning_mllm.analysis.skipping.spec import Computation, Skip
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import ExactMatch, Match
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.statistics.picture_bootstrap import (
    Bootstrap,
    Draws,
    Kept,
    count_questions,
    estimate,
    mean,
    no_numbers,
    pivot,
    ratio_of_means,
    share,
    share_difference,
)
from lightning_mllm.types import MultimodalBatch, Table

MEASURES = (
    "accuracy_percent",
    "accuracy_change_points",  # against nothing skipped, the same questions
    "flops_percent",  # of those with nothing skipped
    "time_percent",  # of all kinds together; N and intervals of times are of passes, not of questions
    "milliseconds",  # per sample of a pass; likewise
)
_COLUMNS = ("right", "flops", "flops_clean", "seconds", "seconds_clean")


@dataclass(frozen=True, kw_only=True)
class SkippingRow:
    """A question and a case; a question that is left out has one row, without a case.

    Attributes:
        sample_id: The question's.
        kind: Its kind.
        picture: Which picture it is about.
        correct: Whether the model answers it right with nothing skipped.
        measured: Whether it is looked into.
        computation: What is skipped.
        start: From which layer on.
        percent: Share of the tokens that qualify.
        right: 1 if the model answers right while it is skipped, else 0; NaN for a question without a kind.
        flops: Operations of the sample's pass through the decoder, without padding.
        flops_clean: With nothing skipped.
        seconds: Time of its batch's pass, per sample: in the row of the batch's first sample, NaN in those of others,
            so that it counts once.
        seconds_clean: With nothing skipped.
    """

    sample_id: str
    kind: str
    picture: str
    correct: bool
    measured: bool = True
    computation: str = ""
    start: int = -1
    percent: float = nan
    right: float = nan
    flops: float = nan
    flops_clean: float = nan
    seconds: float = nan
    seconds_clean: float = nan


class ComputationSkipping(QuestionAnalysis[SkippingRow]):
    """Skips more and more, from several layers on, and looks at what is left of the answers.

    Args:
        skip: All but what the grid varies: tokens, phase, choice, where it stops, and so on.
        computations: What is skipped.
        shares: Of the tokens that qualify.
        starts: First layers; numbers with a decimal point are fractions of the depth.
        repetitions: How often each pass is timed; 0 for no times, which other work on the machine spoils.
        correct_only: Whether only questions count that the model answers right with nothing skipped.
        match: When an answer is right, see `ExactMatch`.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default all.
        bootstrap: How intervals are drawn.
        label: A name of your own.

    Raises:
        ConfigError: The grid is empty, names something twice, or has a case that can't be.
    """

    row_type = SkippingRow
    default_name: ClassVar[str] = "computation_skipping"

    def __init__(
        self,
        *,
        skip: Skip = Skip(),
        computations: Sequence[Computation] = ("ffn",),
        shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        starts: Sequence[int | float] = (0, 0.5),
        repetitions: int = 1,
        correct_only: bool = False,
        match: Match = "normalised",
        kind_depth: int | None = None,
        bootstrap: Bootstrap = Bootstrap(),
        label: str = "",
    ) -> None:
        super().__init__(correct_only=correct_only, match=match, label=label)
        for name, values in (("computations", computations), ("shares", shares), ("starts", starts)):
            if not values or len({*values}) < len(values):
                raise ConfigError(f"ComputationSkipping.{name} needs values, each once; found {list(values)}.")
        if repetitions < 0:
            raise ConfigError(f"ComputationSkipping.repetitions must be at least 0, not {repetitions}.")
        if skip.choice == "lowest_change" and not all(starts):
            raise ConfigError("ComputationSkipping.starts has layer 0; lowest_change needs one before it. Start at 1.")
        self.skip, self.repetitions = skip, repetitions
        self.cases = [
            replace(skip, computation=computation, start=start, share=share)
            for computation in computations
            for start in starts
            for share in shares
        ]
        self.kind_depth, self.bootstrap = kind_depth, bootstrap
        self._flops: dict[tuple[Any, ...], int] = {}  # of passes that do the same

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the rows."""
        return {
            "cases": [asdict(case) for case in self.cases],
            "repetitions": self.repetitions,
            "correct_only": self.correct_only,
            "match": self.match,
        }

    def reset(self) -> None:
        """Forget all rows, and the operations that were counted for this model."""
        super().reset()
        self._flops = {}

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[Question]
    ) -> list[list[SkippingRow]]:
        """Answer and measure with each skip."""
        starts = self._starts(len(decoder_layers(backbone)))
        once = DecoderPass.of(backbone, batch)
        alone = [once.alone(row) for row in range(len(batch))]
        seconds = [nan] * (1 + len(self.cases))
        if self.repetitions:
            seconds = [each / len(batch) for each in once.seconds(backbone, [None, *self.cases], self.repetitions)]
        clean = [self._count(backbone, each, None) for each in alone]
        rows: list[list[SkippingRow]] = [[] for _ in questions]
        for case, time in zip(self.cases, seconds[1:], strict=True):
            right = self._answer(backbone, batch, case)
            for row, question in enumerate(questions):
                rows[row].append(
                    SkippingRow(
                        **_named(question),
                        computation=case.computation,
                        start=starts[case.start],
                        percent=100 * case.share,
                        right=right.get(question.sample_id, nan),
                        flops=self._count(backbone, alone[row], case),
                        flops_clean=clean[row],
                        seconds=nan if row else time,
                        seconds_clean=nan if row else seconds[0],
                    )
                )
        return rows

    def left_out(self, question: Question) -> SkippingRow:
        """Return the row of a question that the model answers wrongly."""
        return SkippingRow(**_named(question), measured=False)

    def summarise(self, table: Table, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the numbers per kind, computation, first layer and share."""
        measured = table["measured"]
        kept = Kept.of(table, self.kind_depth)
        warn_of_nothing_skipped(self.name, self.skip, table)
        axes: dict[str, Sequence[Any]] = {
            "computation": tuple(dict.fromkeys(table["computation"][measured].tolist())),
            "start": tuple(np.unique(table["start"][measured]).tolist()),
            "percent": tuple(np.unique(table["percent"][measured]).tolist()),
        }
        coords: dict[str, tuple[Any, ...]] = {
            "kind": tuple(kept.groups),
            "computation": tuple(axes["computation"]),
            "start": tuple(map(str, axes["start"])),
            "percent": tuple(axes["percent"]),
            "measure": MEASURES,
            "statistic": STATISTICS,
        }
        values = no_numbers(coords)
        cells = {column: pivot(table, column, axes, kept.ids, measured) for column in _COLUMNS}
        answered = np.isfinite(cells["right"]).any(axis=(1, 2, 3)) if len(kept.ids) else np.empty(0, dtype=bool)
        before = np.where(answered, _first(table["correct"], table).astype(np.float64), nan)
        shape = tuple(map(len, axes.values()))
        for group, (kind, rows) in enumerate(kept.groups.items() if len(kept.ids) else ()):
            own = {column: each[rows].reshape(len(rows), -1) for column, each in cells.items()}
            own["seconds"] *= 1 if len(rows) == len(kept.ids) else nan  # a pass is of a batch of all kinds
            numbers = _numbers(own, before[rows, None], self.bootstrap.draw(kept.pictures[rows], kind))
            values[group] = numbers.reshape(*shape, len(MEASURES), len(STATISTICS))
        more = {
            "kind_depth": self.kind_depth,
            "bootstrap": asdict(self.bootstrap),
            "found": {"questions": count_questions(table, self.kind_depth), "pictures": kept.count_pictures()},
        }
        plots = tuple(_plot(computation, coords["start"]) for computation in coords["computation"])
        return AnalysisResult(self.name, values, tuple(coords), coords, len(kept.ids), {**settings, **more}, plots)

    def _answer(self, backbone: Backbone, batch: MultimodalBatch, case: Skip) -> dict[str, float]:
        """Return, of the samples that have a kind, whether the model answers them right."""
        rows = [row for row, kind in enumerate(batch.kinds) if kind is not None]
        if not rows:
            return {}
        assert self._tokenizer is not None  # `update` has seen to it
        asked = batch.take(rows)
        with skipped(backbone, asked, case):
            answers = ExactMatch(match=self.match).evaluate(backbone.model, self._tokenizer, asked)
        return {answer.sample_id: float(answer.correct) for answer in answers}

    def _count(self, backbone: Backbone, alone: DecoderPass, case: Skip | None) -> int:
        """Return a sample's operations: once for all samples that need as many."""
        tokens = alone.tokens
        sizes = (alone.position_ids.shape[1], int(tokens.lengths), int(tokens.perceptual.sum()))
        drawn = case is not None and case.choice == "random" and case.phase != "prefill"  # their number is, too
        key = (case, *sizes, tokens.sample_ids if drawn else ())
        if key not in self._flops:
            self._flops[key] = alone.flops(backbone, case)
        return self._flops[key]

    def _starts(self, depth: int) -> dict[int | float, int]:
        """Return the first layers, as they are said and in numbers.

        Raises:
            ConfigError: A case has no layer in this decoder, or two of the first layers are one.
        """
        starts = {case.start: case.layers(depth)[0] for case in self.cases}
        if len({*starts.values()}) < len(starts):
            raise ConfigError(
                f"ComputationSkipping.starts {list(starts)} are the layers {list(starts.values())} of {depth}, one of "
                "them twice. Leave one out."
            )
        return starts


def _named(question: Question) -> dict[str, Any]:
    return {name: getattr(question, name) for name in ("sample_id", "kind", "picture", "correct")}


def _first(column: NDArray[Any], table: Table) -> NDArray[Any]:
    """Return what the questions that are looked into have in a column in which their rows are the same."""
    measured = table["measured"]
    _, first = np.unique(table["sample_id"][measured], return_index=True)
    return column[measured][first]


def _numbers(cells: Mapping[str, Floats], before: Floats, draws: Draws) -> Floats:
    """Return (cases, measures, statistics) of (questions, cases) cells."""
    saved = (("flops", "flops_clean"), ("seconds", "seconds_clean"))
    right, pictures = cells["right"], draws.pictures
    parts = [share(right, pictures, 100), share_difference(right, before, pictures, 100)]
    for name, clean in saved:
        ratio = estimate(ratio_of_means(cells[name], cells[clean]), cells[name], draws)
        parts.append(ratio * [100, 100, 100, 1])
    parts.append(estimate(mean(1000 * cells["seconds"]), cells["seconds"], draws))
    return np.stack(parts, axis=1)


def _plot(computation: str, starts: Sequence[str]) -> Plot:
    return Plot(
        f"accuracy_{computation}",
        "lines",
        x="percent",
        y="start",
        shown={start: f"from layer {start}" for start in starts},
        fixed={"computation": computation, "measure": MEASURES[0]},
        xlabel="Tokens that skip it (%)",
        label="Accuracy (%)",
        title=f"Skipping: {computation.replace('_', ' ')}",
    )
