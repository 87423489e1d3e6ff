"""The answer word, layer by layer: what LAST would say if the layers after did nothing.

The residual stream at the last position (LAST), from index 0 (the embedding) to L (the output of
the last layer), goes through the final norm and the head (nostalgebraist's "logit lens"). This
shows how the answer comes about in Zhang et al. (arXiv 2411.18620, section 6): a word becomes
likely in lower case first, then capitalised.

A word is read by its first token after the prompt, as in the paper: that is what LAST predicts. For
an answer of several tokens this is only the beginning. So the joint log-probability of the whole
reference, as the data writes it, stands beside it. Each of its tokens is read by the same lens at
the position before it, where the model is given the reference's earlier tokens. The end of the turn
is not counted.

`norm="none"` is the paper's variant: raw states of index 0 to L - 1, and the normed one at L, as
transformers returns them. Its curves depend on the length of the residual stream, and jump at L,
where both variants are the model's own distribution.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import nan
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.core.per_question import PerQuestionAnswer, QuestionAnalysis
from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.analysis.lens.headline import make_lens_headline
from lightning_mllm.analysis.lens.readout import (
    WORDS,
    Norm,
    ReadoutPositions,
    TokensOf,
    read_out,
    readout_states,
)
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import Match
from lightning_mllm.families import finish_logits
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.progress import track
from lightning_mllm.statistics.interval import STATISTICS, missing_interval
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.statistics.picture_bootstrap import (
    Bootstrap,
    bootstrap_estimate,
    bootstrap_mean,
    bootstrap_median,
)
from lightning_mllm.statistics.question_table import (
    KeptQuestions,
    count_questions,
    pivot_question_table,
)
from lightning_mllm.types import Table

logger = logging.getLogger(__name__)

CURVES = dict(zip(WORDS, ("answer", "Answer", "false option", "False option"), strict=True))
MEASURES = ("probability_percent", "median_rank")
JOINT = "whole reference"


@dataclass(frozen=True, kw_only=True)
class AnswerLensRow:
    """A question and a layer; a question that is left out has one row, without a layer.

    Attributes:
        sample_id: Id of the question's sample.
        kind: Kind of the question.
        picture: Name of the picture that it is about.
        correct: Whether the model answers it right.
        measured: Whether the lens is put on it.
        layer: Number of layers that the state has gone through; 0 for the embedding.
        p_lower: Probability of the first token of the answer in lower case.
        p_capitalised: Probability of the first token of the capitalised answer.
        p_false_lower: Probability of the first token of the wrong option in lower case.
        p_false_capitalised: Probability of the first token of the capitalised wrong option.
        rank_lower: How many tokens are likelier than that of `p_lower`.
        rank_capitalised: How many tokens are likelier than that of `p_capitalised`.
        rank_false_lower: How many tokens are likelier than that of `p_false_lower`.
        rank_false_capitalised: How many tokens are likelier than that of `p_false_capitalised`.
        reference_logprob: Joint log-probability of the reference's tokens.
        reference_tokens: Number of the reference's tokens.
        top_words: The likeliest tokens, the likeliest first, as a JSON list.
        top_probabilities: Probabilities of `top_words`, as a JSON list.
    """

    sample_id: str
    kind: str
    picture: str
    correct: bool
    measured: bool = True
    layer: int = -1
    p_lower: float = nan
    p_capitalised: float = nan
    p_false_lower: float = nan
    p_false_capitalised: float = nan
    rank_lower: float = nan
    rank_capitalised: float = nan
    rank_false_lower: float = nan
    rank_false_capitalised: float = nan
    reference_logprob: float = nan
    reference_tokens: int = 0
    top_words: str = ""
    top_probabilities: str = ""


class AnswerLens(QuestionAnalysis[AnswerLensRow]):
    """Reads the answer word from every layer.

    Args:
        norm: `final` for the final norm at each layer, `none` for the paper's raw states.
        vocabulary: Over which tokens probabilities and ranks are computed. `head`: all that the
            model can say. `tokenizer`: only those that the tokenizer knows; some checkpoints have
            more of them, as padding.
        top: How many of the likeliest words are kept per layer.
        correct_only: Whether, as in the paper, only questions count that the model answers right.
        match: When an answer is right. `normalised` ignores case, quotes, full stops and blanks.
            `paper`, as in the study, ignores only case and the blanks around the answer.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default
            all.
        bootstrap: How intervals are drawn.
        label: A name of your own for this analysis and its folder.
    """

    row_type = AnswerLensRow
    default_name: ClassVar[str] = "answer_lens"

    def __init__(
        self,
        *,
        norm: Norm = "final",
        vocabulary: TokensOf = "head",
        top: int = 5,
        correct_only: bool = True,
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
        if norm not in ("final", "none"):
            raise ConfigError(f"AnswerLens.norm is {norm!r}; it can be 'final' or 'none'.")
        if vocabulary not in ("head", "tokenizer"):
            raise ConfigError(
                f"AnswerLens.vocabulary is {vocabulary!r}; it can be 'head' or 'tokenizer'."
            )
        if top < 0:
            raise ConfigError(f"AnswerLens.top must be at least 0, not {top}.")
        self.norm, self.vocabulary, self.top = norm, vocabulary, top

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the rows."""
        own = {"norm": self.norm, "vocabulary": self.vocabulary, "top": self.top}
        return {**own, **self.shared_settings}

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[PerQuestionAnswer]
    ) -> list[list[AnswerLensRow]]:
        """Put the lens on all layers."""
        positions = ReadoutPositions.of(batch)
        vocabulary = len(self.tokenizer) if self.vocabulary == "tokenizer" else None
        finish = partial(finish_logits, backbone.model.config)
        states = readout_states(backbone, batch, positions.seen, self.norm)
        lengths = positions.lengths.tolist()
        rows: list[list[AnswerLensRow]] = [[] for _ in questions]
        for layer, hidden in enumerate(states):
            seen = read_out(
                backbone.lm_head,
                hidden,
                positions.ids,
                self.top,
                vocabulary=vocabulary,
                finish=finish,
            )
            last, words = positions.at_last, slice(len(WORDS))
            probabilities = seen.logprobs[last, words].double().exp().tolist()
            ranks = seen.ranks[last, words].double().tolist()
            joint = positions.joint(seen.logprobs[:, -1]).tolist()
            top, top_logprobs = seen.top[last].tolist(), seen.top_logprobs[last].double()
            for number, question in enumerate(questions):
                cells = {
                    **{f"p_{w}": p for w, p in zip(WORDS, probabilities[number], strict=True)},
                    **{f"rank_{w}": rank for w, rank in zip(WORDS, ranks[number], strict=True)},
                    "reference_logprob": joint[number],
                    "reference_tokens": lengths[number],
                    "top_words": _write_words(self.tokenizer, top[number]),
                    "top_probabilities": _write_probabilities(top_logprobs[number]),
                }
                rows[number].append(AnswerLensRow(**question.columns, layer=layer, **cells))
        return rows

    def left_out(self, question: PerQuestionAnswer) -> AnswerLensRow:
        """Return the row of a question that the model answers wrongly."""
        return AnswerLensRow(**question.columns, measured=False)

    def summarise(self, table: Table, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the numbers per kind, word and layer."""
        kept = KeptQuestions.of(table, self.kind_depth)
        layers = tuple(np.unique(table["layer"][table["measured"]]).tolist())
        coords: dict[str, tuple[Any, ...]] = {
            "kind": tuple(kept.groups),
            "word": (*CURVES.values(), JOINT),
            "layer": layers,
            "measure": MEASURES,
            "statistic": STATISTICS,
        }

        def per_layer(column: str) -> Floats:  # (questions, layers)
            return pivot_question_table(
                table, column, {"layer": layers}, kept.ids, table["measured"]
            )

        probabilities = [per_layer(f"p_{word}") for word in WORDS]
        if layers and np.isnan(probabilities).all():
            logger.warning(
                "%s reads the whole reference only: which word answers is known where a question "
                "has a `kind`, and none of these has one",
                self.name,
            )
        probabilities.append(np.exp(per_layer("reference_logprob")))
        ranks = [per_layer(f"rank_{word}") for word in WORDS]
        values = missing_interval(coords)
        kinds = kept.groups.items() if layers else ()
        for index, (kind, rows) in enumerate(track(kinds, f"{self.name}: intervals of kinds")):
            own = values[index]  # (words, layers, measures, statistics)
            draws = self.bootstrap.draw(kept.pictures[rows], kind)
            for word, each in enumerate(probabilities):
                own[word, :, 0] = bootstrap_estimate(
                    bootstrap_mean(100 * each[rows]), each[rows], draws
                )
            for word, each in enumerate(ranks):
                own[word, :, 1] = bootstrap_estimate(
                    bootstrap_median(each[rows]), each[rows], draws
                )
        found = {
            "questions": count_questions(table, self.kind_depth),
            "pictures": kept.count_pictures(),
        }
        return AnalysisResult(
            self.name,
            values,
            tuple(coords),
            coords,
            len(kept.ids),
            {
                **settings,
                "kind_depth": self.kind_depth,
                "bootstrap": asdict(self.bootstrap),
                "found": found,
            },
            (_plot(self.norm),) if layers else (),
            make_lens_headline(values[:, :2], coords["kind"], layers),
        )


def _write_words(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return json.dumps([tokenizer.decode([token]) for token in ids], ensure_ascii=False)


def _write_probabilities(logprobs: Tensor) -> str:
    return json.dumps([float(f"{p:.4g}") for p in logprobs.exp().tolist()])


def _plot(norm: Norm) -> ResultPlot:
    without = ", without the final norm" if norm == "none" else ""
    shown = {}
    for name in (*CURVES.values(), JOINT):
        shown[name] = name if name.islower() else f"{name.lower()}, capitalised"
    return ResultPlot(
        name="lens",
        style="lines",
        x="layer",
        y="word",
        shown=shown,
        fixed={"measure": MEASURES[0]},
        xlabel="Layers before the lens (0: embedding)",
        label="Probability (%)",
        title=f"What LAST would say after each layer{without}",
    )
