"""How many visual tokens a model can do without: accuracy, operations and time for a list of drops.

Each drop is measured on the same questions. Whether a way to choose tokens is any good is told by
random ones and by evenly spaced ones, which are hard to beat (arXiv 2502.11501, 2512.07580): put
both into the list. Random choices are repeated with several seeds.

Answers are generated with the tokens dropped, and scored by exact match. Operations are counted,
and time measured, while the samples go through the decoder. Dropping saves work of the prompts; of
each generated token it saves little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import nan
from typing import Any, ClassVar

from lightning_mllm.analysis.core.per_question import PerQuestionAnswer, QuestionAnalysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.dropping.drop import Drop
from lightning_mllm.analysis.dropping.dropping import check_dropping, dropped
from lightning_mllm.analysis.dropping.rows import DroppingRow
from lightning_mllm.analysis.dropping.summary import summarise_dropping
from lightning_mllm.analysis.forward.decoder_costs import DecoderPassCosts
from lightning_mllm.analysis.forward.sample_tokens import SampleTokens
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import ExactMatch, Match
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.progress import track
from lightning_mllm.statistics.picture_bootstrap import Bootstrap
from lightning_mllm.types import Table

_DROPS = (
    Drop(),
    Drop(keep="least"),
    Drop(choice="norm"),
    Drop(choice="stride"),
    Drop(choice="random"),
)


class TokenDropping(QuestionAnalysis[DroppingRow]):
    """Drops visual tokens in several ways, and measures what is left of the accuracy.

    Args:
        drops: What is dropped: layer, share, choice and, for the seeds of random choices, the first
            seed.
        seeds: With how many seeds each random choice is made; the accuracy is the mean over them.
        repetitions: How often each pass is timed; 0 measures no times, for machines on which other
            work would spoil them.
        correct_only: Whether only questions count that the model answers right with nothing
            dropped.
        match: When an answer is right, see `ExactMatch`.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default
            all.
        bootstrap: How intervals are drawn.
        label: Name of the analysis and its folder, where one run has several of its class.

    Raises:
        ConfigError: There is no drop, one comes twice, or a number is too small.
    """

    row_type = DroppingRow
    default_name: ClassVar[str] = "token_dropping"

    def __init__(
        self,
        *,
        drops: Sequence[Drop] = _DROPS,
        seeds: int = 3,
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
        cases = [replace(drop, seed=0) for drop in drops]
        if not drops or len({*cases}) < len(cases):
            raise ConfigError(
                "TokenDropping.drops needs drops, each once; seeds are varied by "
                f"TokenDropping.seeds. Found {len(drops)}, of which {len({*cases})} differ."
            )
        if seeds < 1 or repetitions < 0:
            raise ConfigError(
                "TokenDropping.seeds must be at least 1 and repetitions at least 0, not "
                f"seeds={seeds} and repetitions={repetitions}."
            )
        self.drops, self.seeds, self.repetitions = tuple(drops), seeds, repetitions
        self.cases: list[Drop] = []
        for drop in drops:
            number = seeds if drop.choice == "random" else 1
            self.cases += [replace(drop, seed=drop.seed + seed) for seed in range(number)]
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
        """Refuse a model of which the tokens of one of the drops can't be dropped."""
        for case in self.cases:
            check_dropping(backbone, case)

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[PerQuestionAnswer]
    ) -> list[list[DroppingRow]]:
        """Answer and measure with each drop."""
        once = DecoderPassCosts.of(backbone, batch, dropped)
        alone = [once.alone(row) for row in range(len(batch))]
        seconds = [nan] * (1 + len(self.cases))
        if self.repetitions:
            every = once.seconds(backbone, [None, *self.cases], self.repetitions)
            seconds = [each / len(batch) for each in every]
        clean = [self._count(backbone, each, None) for each in alone]
        depth = len(decoder_layers(backbone))
        rows: list[list[DroppingRow]] = [[] for _ in questions]
        for case, time in zip(track(self.cases, "Drops of a batch"), seconds[1:], strict=True):
            right = self._answer(backbone, batch, case)
            for row, question in enumerate(questions):
                rows[row].append(
                    DroppingRow(
                        **question.columns,
                        layer=case.first_layer(depth),
                        percent=100 * case.share,
                        choice=case.choice_name,
                        seed=case.seed,
                        right=right.get(question.sample_id, nan),
                        flops=self._count(backbone, alone[row], case),
                        flops_clean=clean[row],
                        seconds=nan if row else time,
                        seconds_clean=nan if row else seconds[0],
                    )
                )
        return rows

    def left_out(self, question: PerQuestionAnswer) -> DroppingRow:
        """Return the row of a question that the model answers wrongly."""
        return DroppingRow(**question.columns, measured=False)

    def summarise(self, table: Table, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the numbers per kind, layer and share, and choice."""
        return summarise_dropping(
            self.name, table, settings, kind_depth=self.kind_depth, bootstrap=self.bootstrap
        )

    def _answer(self, backbone: Backbone, batch: MultimodalBatch, case: Drop) -> dict[str, float]:
        """Return, of the samples that have a kind, whether the model answers them right."""
        rows = [row for row, kind in enumerate(batch.kinds) if kind is not None]
        if not rows:
            return {}
        asked = batch.take(rows)
        with dropped(backbone, SampleTokens.of(asked), case):
            answers = ExactMatch(match=self.match).evaluate(backbone.model, self.tokenizer, asked)
        return {answer.sample_id: float(answer.correct) for answer in answers}

    def _count(self, backbone: Backbone, alone: DecoderPassCosts[Drop], case: Drop | None) -> int:
        """Return a sample's operations; they are counted once for all samples that need as many."""
        tokens = alone.tokens
        size = (
            None if case is None else (case.first_layer(len(decoder_layers(backbone))), case.share)
        )
        key = (size, alone.position_ids.shape[-1], int(tokens.perceptual.sum()))
        if key not in self._flops:
            # which tokens are dropped makes no difference, and ranking them is no matrix product
            plain = (
                None if case is None else Drop(layer=case.layer, share=case.share, choice="stride")
            )
            self._flops[key] = alone.flops(backbone, plain)
        return self._flops[key]
