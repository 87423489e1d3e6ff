"""The answer word, layer by layer: what the last position would say if the layers behind did nothing.

The residual stream at LAST, of index 0 (the embedding) to L (the output of the last layer), goes through the final norm
and the head (nostalgebraist's "logit lens"). With it comes the way to the answer in Zhang et al. (arXiv 2411.18620,
section 6): a word rises in lower case, then capitalised.

Words are their first tokens behind the prompt, as in the paper: that is what LAST predicts. Of an answer of several
tokens this is the beginning. So the joint log-probability of the whole reference, as the data writes it, stands beside
it: each token is read by the same lens at the position before it, with the reference's earlier tokens there. The end of
the turn is no part of it.

`norm="none"` is the paper's: raw states of index 0 to L - 1, and the normed one at L, as transformers hands them out.
Its curves depend on the length of the residual stream, and jump at L, where both are the model's own distribution.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import nan
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.core.analysis import STATISTICS
from lightning_mllm.analysis.core.per_question import Question, QuestionAnalysis
from lightning_mllm.analysis.core.result import AnalysisResult, Plot
from lightning_mllm.analysis.lens.readout import WORDS, Norm, Places, Vocabulary, look, residual_states
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import Match
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.statistics.picture_bootstrap import (
    Bootstrap,
    Kept,
    count_questions,
    estimate,
    mean,
    median,
    no_numbers,
    pivot,
)
from lightning_mllm.types import MultimodalBatch, Table

CURVES = dict(zip(WORDS, ("answer", "Answer", "false option", "False option"), strict=True))
MEASURES = ("probability_percent", "median_rank")
JOINT = "whole reference"
_MEASURED = (  # columns of a row, in the order in which `AnswerLens.measure` fills them
    *(f"p_{word}" for word in WORDS),
    *(f"rank_{word}" for word in WORDS),
    *("reference_logprob", "reference_tokens", "top_words", "top_probabilities"),
)


@dataclass(frozen=True, kw_only=True)
class LensRow:
    """A question and a layer; a question that is left out has one row, without a layer.

    Attributes:
        sample_id: The question's.
        kind: Its kind.
        picture: What it is about.
        correct: Whether the model answers it right.
        measured: Whether it is looked into.
        layer: 0 for the embedding, then the number of layers behind.
        p_lower: Probability of the first token of the answer in lower case.
        p_capitalised: Capitalised.
        p_false_lower: Of the wrong option.
        p_false_capitalised: Capitalised.
        rank_lower: How many tokens are likelier.
        rank_capitalised: Likewise.
        rank_false_lower: Likewise.
        rank_false_capitalised: Likewise.
        reference_logprob: Joint log-probability of the reference's tokens.
        reference_tokens: Their number.
        top_words: The likeliest tokens, the likeliest first, as a JSON list.
        top_probabilities: Their probabilities, likewise.
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


class AnswerLens(QuestionAnalysis[LensRow]):
    """Reads the answer word from every layer.

    Args:
        norm: `final` for the final norm at each layer, `none` for the paper's raw states.
        vocabulary: Over which tokens probabilities and ranks are: `head` for all that the model can say, `tokenizer`
            without those behind the tokenizer's last, with which some checkpoints are padded.
        top: How many of the likeliest words are kept per layer.
        correct_only: Whether, as in the paper, only questions count that the model answers right.
        match: When an answer is right: `normalised` folds case, quotes, full stops and blanks away, `paper` lets only
            case and the blanks around it differ, as the study does.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default all.
        bootstrap: How intervals are drawn.
        label: A name of your own.
    """

    row_type = LensRow
    default_name: ClassVar[str] = "answer_lens"

    def __init__(
        self,
        *,
        norm: Norm = "final",
        vocabulary: Vocabulary = "head",
        top: int = 5,
        correct_only: bool = True,
        match: Match = "normalised",
        kind_depth: int | None = None,
        bootstrap: Bootstrap = Bootstrap(),
        label: str = "",
    ) -> None:
        super().__init__(correct_only=correct_only, match=match, label=label)
        if norm not in ("final", "none"):
            raise ConfigError(f"AnswerLens.norm is {norm!r}; it can be 'final' or 'none'.")
        if vocabulary not in ("head", "tokenizer"):
            raise ConfigError(f"AnswerLens.vocabulary is {vocabulary!r}; it can be 'head' or 'tokenizer'.")
        if top < 0:
            raise ConfigError(f"AnswerLens.top must be at least 0, not {top}.")
        self.norm, self.vocabulary, self.top = norm, vocabulary, top
        self.kind_depth, self.bootstrap = kind_depth, bootstrap

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the rows."""
        return {
            "norm": self.norm,
            "vocabulary": self.vocabulary,
            "top": self.top,
            "correct_only": self.correct_only,
            "match": self.match,
        }

    def measure(self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[Question]) -> list[list[LensRow]]:
        """Read all layers."""
        assert self._tokenizer is not None  # `update` has seen to it
        places = Places.of(batch)
        vocabulary = len(self._tokenizer) if self.vocabulary == "tokenizer" else None
        rows: list[list[LensRow]] = [[] for _ in questions]
        for layer, states in enumerate(residual_states(backbone, batch, places.read, self.norm)):
            seen = look(backbone.lm_head, states, places.ids, self.top, vocabulary)
            joint = places.joint(seen.logprobs[:, -1])
            columns = [
                *seen.logprobs[places.at_last, : len(WORDS)].double().exp().T.tolist(),
                *seen.ranks[places.at_last, : len(WORDS)].double().T.tolist(),
                joint.tolist(),
                places.lengths.tolist(),
                [_decoded(self._tokenizer, ids) for ids in seen.top[places.at_last].tolist()],
                [json.dumps(each) for each in _rounded(seen.top_logprobs[places.at_last])],
            ]
            for own, question, cells in zip(rows, questions, zip(*columns, strict=True), strict=True):
                own.append(_row_of(question, layer=layer, **dict(zip(_MEASURED, cells, strict=True))))
        return rows

    def left_out(self, question: Question) -> LensRow:
        """Return the row of a question that the model answers wrongly."""
        return _row_of(question, measured=False)

    def summarise(self, table: Table, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the numbers per kind, word and layer."""
        kept = Kept.of(table, self.kind_depth)
        layers = tuple(np.unique(table["layer"][table["measured"]]).tolist())
        coords: dict[str, tuple[Any, ...]] = {
            "kind": tuple(kept.groups),
            "word": (*CURVES.values(), JOINT),
            "layer": layers,
            "measure": MEASURES,
            "statistic": STATISTICS,
        }
        cells = {
            column: pivot(table, column, {"layer": layers}, kept.ids, table["measured"])
            for column in (*_MEASURED[: 2 * len(WORDS)], "reference_logprob")
        }
        shares = [*(cells[f"p_{word}"] for word in WORDS), np.exp(cells["reference_logprob"])]
        values = no_numbers(coords)
        for index, (kind, rows) in enumerate(kept.groups.items() if layers else ()):
            own = values[index]  # (words, layers, measures, statistics)
            draws = self.bootstrap.draw(kept.pictures[rows], kind)
            for word, share in enumerate(shares):
                own[word, :, 0] = estimate(mean(100 * share[rows]), share[rows], draws)
            for word, name in enumerate(WORDS):
                ranks = cells[f"rank_{name}"][rows]
                own[word, :, 1] = estimate(median(ranks), ranks, draws)
        more = {
            "kind_depth": self.kind_depth,
            "bootstrap": asdict(self.bootstrap),
            "found": {
                "questions": count_questions(table, self.kind_depth),
                "pictures": kept.count_pictures(),
            },
        }
        plots = (_plot(self.norm),) if layers else ()
        return AnalysisResult(self.name, values, tuple(coords), coords, len(kept.ids), {**settings, **more}, plots)


def _row_of(question: Question, **cells: Any) -> LensRow:
    return LensRow(
        sample_id=question.sample_id, kind=question.kind, picture=question.picture, correct=question.correct, **cells
    )


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return json.dumps([tokenizer.decode([token]) for token in ids], ensure_ascii=False)


def _rounded(logprobs: Tensor) -> list[list[float]]:
    return [[float(f"{p:.4g}") for p in row] for row in logprobs.double().exp().tolist()]


def _plot(norm: Norm) -> Plot:
    return Plot(
        name="lens",
        style="lines",
        x="layer",
        y="word",
        shown={name: name for name in (*CURVES.values(), JOINT)},
        fixed={"measure": MEASURES[0]},
        xlabel="Layers behind (0: embedding)",
        label="Probability (%)",
        title="What LAST would say after each layer" + (", without the final norm" if norm == "none" else ""),
    )
