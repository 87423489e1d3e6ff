"""Cross-modal information flow: what blocking attention does to the answer.

The study of Zhang et al., "Cross-modal Information Flow in Multimodal Large Language Models" (CVPR
2025, arXiv 2411.18620), with the knockout of Geva et al. (2023). In a window of layers the target's
positions cannot attend to the source's, and the probability p of the token that the model would say
first is read again. What is found is the effect of blocking. This is not where information is: it
can take other ways, such as the tokens of the instruction and of the roles.

Per question, block and window there is a row (`FlowRow`). Its change of probability,
100 (p_after - p_before) / p_before, is the paper's. Averaged over questions it is a mean of ratios,
which has no upper bound and is large where p_before is small. So the ratio of means, the median and
the change of log p are reported beside it, and the rate of questions whose first token flips.

How much hiding the picture can do at all is measured by each question's ceiling: there it is hidden
from all text in all layers, and still a model guesses some answers right. Effects are also reported
in percent of the ceiling's. The ceiling is not a bound: what is left of a picture can mislead more
than no picture. And a model without a picture may always say the same answer, which then can't
flip; so right answers have numbers of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import Any, ClassVar

from lightning_mllm.analysis.core.per_question import PerQuestionAnswer, QuestionAnalysis
from lightning_mllm.analysis.core.refusal import refusal
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.core.windows import Window, Windows
from lightning_mllm.analysis.knockout.block import Block
from lightning_mllm.analysis.knockout.engine.base import Case, KnockoutEngine
from lightning_mllm.analysis.knockout.engine.suffix import EngineName, choose_engine
from lightning_mllm.analysis.knockout.mask import check_mask_attention, count_mask_heads
from lightning_mllm.analysis.knockout.rows import FlowOptionIds, FlowRow, flow_rows, make_flow_row
from lightning_mllm.analysis.knockout.summary import CEILING, summarise_flow
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import Match
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.statistics.picture_bootstrap import Bootstrap
from lightning_mllm.types import Sample, Segment, Table

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
_NEEDED = {  # what a sample must have for a segment to be anywhere
    "boxes": {Segment.IMAGE_OBJECT, Segment.IMAGE_OTHER, Segment.IMAGE_RANDOM},
    "distractors": {Segment.IMAGE_DISTRACTOR},
    "options": {Segment.TRUE_OPTION, Segment.FALSE_OPTION},
}
CONTRASTS = (("image object->question", "image random->question"),)


class InformationFlow(QuestionAnalysis[FlowRow]):
    """Blocks attention in windows of layers and reads what the model would say.

    Args:
        blocks: What is blocked, as "image->question"; by default the paper's six and a control.
        windows: In which layers it is blocked; a window that is listed twice counts once.
        each_head: Whether each block is also tried in each attention head by itself: with windows
            of one layer, what single heads do.
        engine: `suffix` computes only what can change, `reference` runs the whole model for each
            case. `auto` takes `suffix` where it is exact, else `reference`.
        memory_gib: How many GiB the engine may use besides the weights; by default half of what is
            free.
        correct_only: Whether, as in the paper, only questions count that the model answers right.
        match: When an answer is right. `normalised` ignores case, quotes, full stops and blanks.
            `paper`, as in the study, ignores only case and the blanks around the answer.
        contrasts: Pairs of blocks whose difference is reported with its interval, on the same
            questions for both. Questions whose random patches could not avoid the object are left
            out of contrasts with such patches.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default
            all.
        least_per_answer: How many questions a right answer needs to have numbers of its own, beside
            those of its kind.
        bootstrap: How intervals are drawn.
        label: A name of your own for this analysis and its folder.

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
        each_head: bool = False,
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
        super().__init__(
            correct_only=correct_only,
            match=match,
            kind_depth=kind_depth,
            bootstrap=bootstrap,
            label=label,
        )
        self.blocks = tuple(Block.parse(block) for block in blocks)
        names = [str(block) for block in self.blocks]
        if not names or len(set(names)) < len(names):
            raise ConfigError(
                f"InformationFlow needs blocks, each once; found {', '.join(names) or 'none'}."
            )
        if contrasts is None:
            contrasts = [pair for pair in CONTRASTS if {*pair} <= {*names}]
        self.contrasts = [(_normalise(ours), _normalise(theirs)) for ours, theirs in contrasts]
        if lacking := sorted({*chain.from_iterable(self.contrasts)} - {*names}):
            raise ConfigError(
                f"A contrast names {lacking[0]!r}, which is not among the blocks. Add it to them."
            )
        self.windows, self.engine, self.memory_gib = windows, engine, memory_gib
        self.each_head = each_head
        self.least_per_answer = least_per_answer
        self._engine: KnockoutEngine | None = None
        self._told: set[str] = set()  # blocks of which it was said that they hide nothing

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the rows."""
        return {
            "blocks": [str(block) for block in self.blocks],
            "windows": asdict(self.windows),
            "each_head": self.each_head,
            "engine": self.engine,
            **self.shared_settings,
        }

    def reset(self) -> None:
        """Forget all rows; and the engine, so that it is checked again with the model."""
        super().reset()
        self._engine = None

    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse samples without a kind where it matters.

        Blocks whose positions no sample has are reported by a warning for all that lack the same.
        """
        samples = [*samples]
        super().check(samples)
        lacking: dict[Segment, str] = {}  # segment -> the field of samples that it needs
        for field, segments in _NEEDED.items():
            if not any(getattr(sample, field) for sample in samples):
                lacking |= dict.fromkeys(segments, field)
        found: dict[str, dict[str, None]] = {}  # what is lacking -> blocks, in order
        for block in self.blocks:
            for side in (block.source, block.target):
                if all(term & lacking.keys() for term in side.terms):
                    needed = sorted({lacking[each] for each in side.segments & lacking.keys()})
                    found.setdefault(" and ".join(needed), {})[str(block)] = None
        self._told = {*chain.from_iterable(found.values())}
        for fields, blocks in found.items():
            logger.warning(
                "%s: none of the %d samples has %s, so these blocks hide nothing: %s.",
                self.name,
                len(samples),
                fields,
                ", ".join(blocks),
            )

    def check_model(self, backbone: Backbone) -> None:
        """Refuse a model whose attention can't be blocked."""
        check_mask_attention(backbone)
        if self.engine == "suffix" and backbone.family.sees == "prompt whole":
            raise refusal(
                backbone,
                "The suffix engine",
                "each position of its prompts sees all others, so that all rows can change",
                "Use engine=auto or engine=reference.",
            )
        if getattr(backbone.model.config, "deepstack_layer_map", None):
            raise refusal(
                backbone,
                "Attention knockout",
                "it adds the features of an image between the layers of its LLM and puts none at "
                "the input, so that they can't be encoded once",
                "Choose a model of another family.",
            )

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[PerQuestionAnswer]
    ) -> list[list[FlowRow]]:
        """Run all blocks in all windows, and the ceiling."""
        depth = len(decoder_layers(backbone))
        windows = dict.fromkeys(self.windows.of(depth))
        cases = []
        for block in self._list_blocks(backbone):
            cases += [Case(block, window) for window in windows]
        cases.append(Case(CEILING, Window(depth // 2, 0, depth)))
        options = FlowOptionIds.of(batch.answers)
        if self._engine is None:
            memory = None if self.memory_gib is None else int(self.memory_gib * 2**30)
            self._engine = choose_engine(self.engine, memory)
        ids = options.ids.to(batch.input_ids.device)
        readings = self._engine.run(backbone, batch, cases, ids)
        rows = flow_rows(questions, batch, cases, readings, options)
        return [[*swept, replace(ceiling, ceiling=True)] for *swept, ceiling in rows]

    def _list_blocks(self, backbone: Backbone) -> list[Block]:
        """Return the blocks, each followed by itself in single heads where these are swept."""
        blocks = []
        for block in self.blocks:
            blocks.append(block)
            if self.each_head and block.in_all_heads:
                heads = range(count_mask_heads(backbone))
                blocks += [replace(block, heads=(head,)) for head in heads]
        return list(dict.fromkeys(blocks))

    def left_out(self, question: PerQuestionAnswer) -> FlowRow:
        """Return the row of a question that the model answers wrongly."""
        return make_flow_row(question, measured=False)

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
            told=self._told,
        )


def _normalise(block: str) -> str:
    """Return the one way to write a block."""
    return str(Block.parse(block))
