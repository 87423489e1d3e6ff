"""How much can be skipped: accuracy, operations and time over a grid.

The grid is of computations, first layers, and shares of tokens. It is the experiment of Shukor and
Cord, "Implicit Multimodal Alignment" (NeurIPS 2024, arXiv 2405.16700, figure 11), in which a share
of the visual (or textual) tokens goes around the FFN of all layers from `start` on; and, as in
"Skipping Computations in Multimodal LLMs" (arXiv 2410.09454), around attention or whole layers.

Answers are generated with the skip in place, and scored by exact match. Operations are counted, and
time measured, while the samples go through the decoder. What is skipped is really not computed, but
half of the operations need not take half of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from math import nan
from typing import Any, ClassVar

from lightning_mllm.analysis.core.per_question import PerQuestionAnswer, QuestionAnalysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.forward.decoder_costs import DecoderPassCosts
from lightning_mllm.analysis.skipping.costs import warn_of_no_costs_saved
from lightning_mllm.analysis.skipping.rows import SkippingRow
from lightning_mllm.analysis.skipping.skip import Computation, Skip
from lightning_mllm.analysis.skipping.skipping import check_skipping, skipped
from lightning_mllm.analysis.skipping.summary import summarise_skipping
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import ExactMatch, Match
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.progress import track
from lightning_mllm.statistics.picture_bootstrap import (
    Bootstrap,
)
from lightning_mllm.types import Table


class ComputationSkipping(QuestionAnalysis[SkippingRow]):
    """Skips more and more, from several layers on, and measures what is left of the accuracy.

    Args:
        skip: What the grid does not vary: tokens, phase, choice, last layer, and so on.
        computations: Which computations are skipped.
        shares: Shares of the tokens that skip them, of those that qualify.
        starts: First layers that skip; numbers with a decimal point are fractions of the depth.
        repetitions: How often each pass is timed; 0 measures no times, for machines on which other
            work would spoil them.
        correct_only: Whether only questions count that the model answers right with nothing
            skipped.
        match: When an answer is right, see `ExactMatch`.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default
            all.
        bootstrap: How intervals are drawn.
        label: Name of the analysis and its folder, where one run has several of its class.

    Raises:
        ConfigError: The grid is empty, names something twice, or has an impossible case.
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
        super().__init__(
            correct_only=correct_only,
            match=match,
            kind_depth=kind_depth,
            bootstrap=bootstrap,
            label=label,
        )
        for name, values in (
            ("computations", computations),
            ("shares", shares),
            ("starts", starts),
        ):
            if not values or len({*values}) < len(values):
                raise ConfigError(
                    f"ComputationSkipping.{name} needs values, each once; found {list(values)}."
                )
        if repetitions < 0:
            raise ConfigError(
                f"ComputationSkipping.repetitions must be at least 0, not {repetitions}."
            )
        if skip.choice == "lowest_change" and not all(starts):
            raise ConfigError(
                "ComputationSkipping.starts has layer 0; lowest_change needs one before it. Start "
                "at 1."
            )
        self.skip, self.repetitions = skip, repetitions
        self.cases: list[Skip] = []
        for computation, start, share in product(computations, starts, shares):
            self.cases.append(replace(skip, computation=computation, start=start, share=share))
        self._flops: dict[tuple[Any, ...], int] = {}  # of passes that compute the same

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the rows."""
        return {
            "cases": [asdict(case) for case in self.cases],
            "repetitions": self.repetitions,
            **self.shared_settings,
        }

    def reset(self) -> None:
        """Forget all rows, and the operations that were counted for this model."""
        super().reset()
        self._flops = {}

    def check_model(self, backbone: Backbone) -> None:
        """Refuse a model in whose layers one of the cases can't be skipped."""
        for case in self.cases:
            check_skipping(backbone, case)

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[PerQuestionAnswer]
    ) -> list[list[SkippingRow]]:
        """Answer and measure with each skip."""
        starts = self._starts(len(decoder_layers(backbone)))
        once = DecoderPassCosts.of(backbone, batch, skipped)
        alone = [once.alone(row) for row in range(len(batch))]
        seconds = [nan] * (1 + len(self.cases))
        if self.repetitions:
            seconds = [
                each / len(batch)
                for each in once.seconds(backbone, [None, *self.cases], self.repetitions)
            ]
        clean = [self._count(backbone, each, None) for each in alone]
        rows: list[list[SkippingRow]] = [[] for _ in questions]
        for case, time in zip(track(self.cases, "Skips of a batch"), seconds[1:], strict=True):
            right = self._answer(backbone, batch, case)
            for row, question in enumerate(questions):
                rows[row].append(
                    SkippingRow(
                        **question.columns,
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

    def left_out(self, question: PerQuestionAnswer) -> SkippingRow:
        """Return the row of a question that the model answers wrongly."""
        return SkippingRow(**question.columns, measured=False)

    def summarise(self, table: Table, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the numbers per kind, computation, first layer and share."""
        warn_of_no_costs_saved(self.name, self.skip, table)
        return summarise_skipping(
            self.name, table, settings, kind_depth=self.kind_depth, bootstrap=self.bootstrap
        )

    def _answer(self, backbone: Backbone, batch: MultimodalBatch, case: Skip) -> dict[str, float]:
        """Return, of the samples that have a kind, whether the model answers them right."""
        rows = [row for row, kind in enumerate(batch.kinds) if kind is not None]
        if not rows:
            return {}
        asked = batch.take(rows)
        with skipped(backbone, asked, case):
            answers = ExactMatch(match=self.match).evaluate(backbone.model, self.tokenizer, asked)
        return {answer.sample_id: float(answer.correct) for answer in answers}

    def _count(self, backbone: Backbone, alone: DecoderPassCosts[Skip], case: Skip | None) -> int:
        """Return a sample's operations; they are counted once for all samples that need as many."""
        tokens = alone.tokens
        sizes = (alone.position_ids.shape[-1], int(tokens.lengths), int(tokens.perceptual.sum()))
        # after prompts the number of skipped tokens is random, too
        drawn = case is not None and case.choice == "random" and case.phase != "prefill"
        key = (case, *sizes, tokens.sample_ids if drawn else ())
        if key not in self._flops:
            self._flops[key] = alone.flops(backbone, case)
        return self._flops[key]

    def _starts(self, depth: int) -> dict[int | float, int]:
        """Return each first layer as it was given -> its number.

        Raises:
            ConfigError: A case has no layer in this decoder, or two first layers are the same.
        """
        starts = {case.start: case.layers(depth)[0] for case in self.cases}
        if len({*starts.values()}) < len(starts):
            raise ConfigError(
                f"ComputationSkipping.starts {list(starts)} are the layers "
                f"{list(starts.values())} of {depth}, one of them twice. Leave one out."
            )
        return starts
