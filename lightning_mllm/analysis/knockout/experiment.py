"""Cross-modal information flow: what blocking attention does to the answer, block by block and window by window.

The study of Zhang et al., "Cross-modal Information Flow in Multimodal Large Language Models" (CVPR 2025, arXiv
2411.18620), with the knockout of Geva et al. (2023): in a window of layers the target's positions lose sight of the
source's, and the probability p of the token that the model would say first is read again. What is found is the effect
of blocking, which is not where information is: it can take other ways, as the instruction's and the roles' tokens.

Per question, block and window there is a row (`FlowRow`). Its change of probability, 100 (p_after - p_before) /
p_before, is the paper's; averaged over questions it is the mean of ratios, which has no upper bound and is large where
p_before is small. So the ratio of means, the median and the change of log p stand beside it, and the share of questions
whose first token flips.

How much hiding the picture can do at all, each question's ceiling says: there it is hidden from all text in all layers,
and yet a model guesses some answers right. Effects are also told as a share of this, which is no bound: what is left of
a picture can mislead more than none. And as a model without a picture may always say the same, which then can't flip,
right answers have numbers of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

from lightning_mllm.analysis.core.per_question import Question, QuestionAnalysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.core.windows import Window, Windows
from lightning_mllm.analysis.knockout.block import Block
from lightning_mllm.analysis.knockout.engine.choice import EngineName, choose_engine
from lightning_mllm.analysis.knockout.engine.interface import Case, KnockoutEngine
from lightning_mllm.analysis.knockout.rows import FlowRow, OptionIds, flow_rows, row_of
from lightning_mllm.analysis.knockout.summary import CEILING, summarise_flow
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import Match
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.statistics.picture_bootstrap import Bootstrap
from lightning_mllm.types import MultimodalBatch, Sample, Segment, Table

logger = logging.getLogger(__name__)

BLOCKS = (  # the paper's six, and the control for the fifth: as many of the other patches
    "question->last",
    "image->last",
    "last->last",
    "image->question",
    "image object->question",
    "image other->question",
    "image random->question",
)
_TAKES = {  # what a sample must have for a segment to be anywhere
    "boxes": {Segment.IMAGE_OBJECT, Segment.IMAGE_OTHER, Segment.IMAGE_RANDOM},
    "distractors": {Segment.IMAGE_DISTRACTOR},
    "options": {Segment.TRUE_OPTION, Segment.FALSE_OPTION},
}
CONTRASTS = (("image object->question", "image random->question"),)


class InformationFlow(QuestionAnalysis[FlowRow]):
    """Blocks attention in windows of layers and reads what the model would say.

    Args:
        blocks: What is blocked, as "image->question"; by default the paper's six and a control.
        windows: In which layers; a window that is there twice counts once.
        engine: `suffix` computes only what can change, `reference` runs the whole model for each case; `auto` is the
            first where it is exact.
        memory_gib: What the engine may use besides the weights; by default half of what is free.
        correct_only: Whether, as in the paper, only questions count that the model answers right.
        match: When an answer is right: `normalised` folds case, quotes, full stops and blanks away, `paper` lets only
            case and the blanks around it differ, as the study does.
        contrasts: Pairs of blocks whose difference is reported with its interval, the same questions for both;
            questions whose random patches could not avoid the object are left out of those with such patches.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default all.
        least_per_answer: With how many questions a right answer has numbers of its own, beside those of its kind.
        bootstrap: How intervals are drawn.
        label: A name of your own.

    Raises:
        ConfigError: A block can't be read, is there twice, or is in a contrast and nowhere else.
    """

    row_type = FlowRow
    default_name: ClassVar[str] = "information_flow"

    def __init__(
        self,
        *,
        blocks: Sequence[str] = BLOCKS,
        windows: Windows = Windows(),
        engine: EngineName = "auto",
        memory_gib: float | None = None,
        correct_only: bool = True,
        match: Match = "normalised",
        contrasts: Sequence[tuple[str, str]] | None = None,
        kind_depth: int | None = None,
        least_per_answer: int = 20,
        bootstrap: Bootstrap = Bootstrap(),
        label: str = "",
    ) -> None:
        super().__init__(correct_only=correct_only, match=match, label=label)
        self.blocks = tuple(Block.parse(block) for block in blocks)
        names = [str(block) for block in self.blocks]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"InformationFlow needs blocks, each once; found {', '.join(names) or 'none'}.")
        wanted = [pair for pair in CONTRASTS if {*pair} <= {*names}] if contrasts is None else contrasts
        self.contrasts = tuple((str(Block.parse(ours)), str(Block.parse(theirs))) for ours, theirs in wanted)
        if lacking := sorted({block for pair in self.contrasts for block in pair} - {*names}):
            raise ConfigError(f"A contrast names {lacking[0]!r}, which is not among the blocks. Add it to them.")
        self.windows, self.engine, self.memory_gib = windows, engine, memory_gib
        self.kind_depth, self.least_per_answer, self.bootstrap = kind_depth, least_per_answer, bootstrap
        self._engine: KnockoutEngine | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the rows."""
        return {
            "blocks": [str(block) for block in self.blocks],
            "windows": asdict(self.windows),
            "engine": self.engine,
            "correct_only": self.correct_only,
            "match": self.match,
        }

    def reset(self) -> None:
        """Forget all rows; and the engine, which will check again whether it is exact for the model."""
        super().reset()
        self._engine = None

    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse samples without a kind where it matters; warn of blocks that no sample has the positions of."""
        samples = [*samples]
        super().check(samples)
        lacking: dict[Segment, str] = {}
        for field, segments in _TAKES.items():
            if not any(getattr(sample, field) for sample in samples):
                lacking |= dict.fromkeys(segments, field)
        for block in self.blocks:
            for side in (block.source, block.target):
                if all(term & lacking.keys() for term in side.terms):
                    needed = sorted({lacking[segment] for segment in side.segments if segment in lacking})
                    logger.warning(
                        "%s: %s will block nothing: none of the %d samples has %r, which takes %s.",
                        *(self.name, block, len(samples), str(side), " and ".join(needed)),
                    )

    def measure(self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[Question]) -> list[list[FlowRow]]:
        """Run all blocks in all windows, and the ceiling."""
        depth = len(decoder_layers(backbone))
        windows = dict.fromkeys(self.windows.of(depth))
        cases = [Case(block, window) for block in self.blocks for window in windows]
        cases.append(Case(CEILING, Window(depth // 2, 0, depth)))
        options = OptionIds.of(batch.answers)
        if self._engine is None:
            self._engine = choose_engine(self.engine, None if self.memory_gib is None else int(self.memory_gib * 2**30))
        found = self._engine.run(backbone, batch, cases, options.ids.to(batch.input_ids.device))
        rows = flow_rows(questions, batch, cases, found, options)
        return [[*swept, replace(ceiling, ceiling=True)] for *swept, ceiling in rows]

    def left_out(self, question: Question) -> FlowRow:
        """Return the row of a question that the model answers wrongly."""
        return row_of(question, measured=False)

    def summarise(self, table: Table, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the numbers per kind, block and window."""
        return summarise_flow(
            table,
            name=self.name,
            contrasts=self.contrasts,
            kind_depth=self.kind_depth,
            least_per_answer=self.least_per_answer,
            bootstrap=self.bootstrap,
            settings=settings,
        )
