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

from lightning_mllm.analysis.base import STATISTICS, AnalysisResult, Plot, Question, QuestionAnalysis
from lightning_mllm.analysis.lens import WORDS, Norm, Places, look, residual_states
from lightning_mllm.analysis.rows import Table
from lightning_mllm.analysis.summaries import (
    Bootstrap,
    count_questions,
    estimate,
    mean,
    median,
    members,
    no_numbers,
    pivot,
)
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import MultimodalBatch

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
        top: How many of the likeliest words are kept per layer.
        correct_only: Whether, as in the paper, only questions count that the model answers right.
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
        top: int = 5,
        correct_only: bool = True,
        kind_depth: int | None = None,
        bootstrap: Bootstrap = Bootstrap(),  # noqa: B008 - frozen
        label: str = "",
    ) -> None:
        super().__init__(correct_only, label)
        if norm not in ("final", "none"):
            raise ConfigError(f"AnswerLens.norm is {norm!r}; it can be 'final' or 'none'.")
        if top < 0:
            raise ConfigError(f"AnswerLens.top must be at least 0, not {top}.")
        self.norm, self.top = norm, top
        self.kind_depth, self.bootstrap = kind_depth, bootstrap

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the rows."""
        return {"norm": self.norm, "top": self.top, "correct_only": self.correct_only}

    def measure(self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[Question]) -> list[list[LensRow]]:
        """Read all layers."""
        places = Places.of(batch)
        rows: list[list[LensRow]] = [[] for _ in questions]
        for layer, states in enumerate(residual_states(backbone, batch, places.read, self.norm)):
            seen = look(backbone.lm_head, states, places.ids, self.top)
            joint = places.joint(seen.logprobs[:, -1])
            columns = [
                *seen.logprobs[places.at_last, : len(WORDS)].double().exp().T.tolist(),
                *seen.ranks[places.at_last, : len(WORDS)].double().T.tolist(),
                joint.tolist(),
                places.lengths.tolist(),
                [self._words(ids) for ids in seen.top[places.at_last].tolist()],
                [json.dumps(each) for each in _rounded(seen.top_logprobs[places.at_last])],
            ]
            for own, question, cells in zip(rows, questions, zip(*columns, strict=True), strict=True):
                own.append(LensRow(**asdict(question), layer=layer, **dict(zip(_MEASURED, cells, strict=True))))
        return rows

    def left_out(self, question: Question) -> LensRow:
        """Return the row of a question that the model answers wrongly."""
        return LensRow(**asdict(question), measured=False)

    def summarise(self, table: Table, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the numbers per kind, word and layer."""
        measured = table["measured"]
        questions, first = np.unique(table["sample_id"][measured], return_index=True)
        layers = tuple(np.unique(table["layer"][measured]).tolist())
        shares = {**{f"p_{word}": name for word, name in CURVES.items()}, "reference_logprob": JOINT}
        groups = members(table["kind"][measured][first], self.kind_depth)
        coords: dict[str, tuple[Any, ...]] = {
            "kind": tuple(groups),
            "word": tuple(shares.values()),
            "layer": layers,
            "measure": MEASURES,
            "statistic": STATISTICS,
        }
        values = no_numbers(coords)
        for k, column in enumerate(shares):
            found = pivot(table, column, {"layer": layers}, questions, measured)
            shown = 100 * (np.exp(found) if column == "reference_logprob" else found)
            rank = f"rank_{column.removeprefix('p_')}"
            ranks = pivot(table, rank, {"layer": layers}, questions, measured) if rank in table else None
            for g, (kind, rows) in enumerate(groups.items() if len(questions) else ()):
                weights = self.bootstrap.weights(len(rows), kind)
                values[g, k, :, 0] = estimate(mean(shown[rows]), shown[rows], weights)
                if ranks is not None:
                    values[g, k, :, 1] = estimate(median(ranks[rows]), ranks[rows], weights)
        more = {
            "kind_depth": self.kind_depth,
            "bootstrap": asdict(self.bootstrap),
            "found": {"questions": count_questions(table, self.kind_depth)},
        }
        return AnalysisResult(
            self.name, values, tuple(coords), coords, len(questions), {**settings, **more}, _plots(self.norm)
        )

    def _words(self, ids: Sequence[int]) -> str:
        assert self._tokenizer is not None  # `update` has seen to it
        return json.dumps([self._tokenizer.decode([token]) for token in ids], ensure_ascii=False)


def _rounded(logprobs: Tensor) -> list[list[float]]:
    return [[float(f"{p:.4g}") for p in row] for row in logprobs.double().exp().tolist()]


def _plots(norm: Norm) -> tuple[Plot, ...]:
    shown = {name: name for name in (*CURVES.values(), JOINT)}
    options = {"x": "layer", "y": "word", "xlabel": "Layers behind (0: embedding)"}
    title = "What LAST would say after each layer" + (", without the final norm" if norm == "none" else "")
    return (
        Plot(
            "lens",
            "lines",
            shown=shown,
            fixed={"measure": MEASURES[0]},
            label="Probability (%)",
            title=title,
            **options,
        ),
    )
