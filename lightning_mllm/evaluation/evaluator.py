"""One evaluation, batch by batch: classes where samples have labels, else open answers per kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation.classification.metrics import (
    ClassificationMetrics,
    ClassificationResult,
)
from lightning_mllm.evaluation.classification.scorer import Predictions, Scorer
from lightning_mllm.evaluation.decoding import decode_answers
from lightning_mllm.evaluation.open_answers.answer_metrics import AnswerMetrics, AnswerResult
from lightning_mllm.evaluation.open_answers.exact_match import ExactMatch, OpenAnswer
from lightning_mllm.evaluation.prompt_pass import PromptPass
from lightning_mllm.types import LabelSet

_LOGGED = ("accuracy", "macro_f1", "invalid_rate")


@dataclass(frozen=True)
class EvaluatedBatch:
    """The predictions and answers of a batch.

    Attributes:
        predictions: Scorer name -> predictions; empty for free-form data.
        answers: Answers to the free-form samples that have a kind.
        texts: Sample id -> answer to each other free-form sample; `score` asks these nothing.
    """

    predictions: dict[str, Predictions] = field(default_factory=dict)
    answers: tuple[OpenAnswer, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)


class Evaluator(nn.Module):
    """Scores batches and sums over processes; a module, so that counts are on the model's device.

    Args:
        scorers: How answers become predictions on classification data.

    Attributes:
        results: Scorer name -> scores of the last evaluation; empty for free-form data.
        exact_match: Scores of the open answers of the last evaluation; None if there were none.

    Raises:
        ConfigError: Two scorers have one name.
    """

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        super().__init__()
        if len({scorer.name for scorer in scorers}) < len(scorers):
            raise ConfigError(
                "model.scorers names the same scorer twice; each kind can stand there once."
            )
        self.scorers = tuple(scorers)
        self.results: dict[str, ClassificationResult] = {}
        self.exact_match: AnswerResult | None = None
        self._labels: LabelSet | None = None
        self._by_scorer = nn.ModuleDict()
        self._answers = AnswerMetrics(())

    def prepare(self, labels: LabelSet | None, kinds: tuple[str, ...]) -> None:
        """Create the metrics of a dataset, unless they exist.

        Args:
            labels: The classes of the dataset; None for free-form data.
            kinds: All kinds of questions of the dataset; empty where answers are not scored.

        Raises:
            DataError: A kind is named as the accuracy over all kinds is.
        """
        if labels != self._labels:
            self._labels = labels
            self._by_scorer = nn.ModuleDict()
            if labels is not None:
                for scorer in self.scorers:
                    self._by_scorer[scorer.name] = ClassificationMetrics(labels.names)
        if kinds != self._answers.kinds:
            self._answers = AnswerMetrics(kinds)

    def reset(self) -> None:
        """Start the counts again."""
        for metric in (*self._metrics.values(), self._answers):
            metric.reset()

    def asked(self, batch: MultimodalBatch) -> MultimodalBatch:
        """Return the samples of a batch on which `score` runs the model, if no answer is known."""
        if self._labels is not None:
            return batch if self.scorers else batch.take([])
        kinds = batch.kinds if self._answers.kinds else ()
        return batch.take([row for row, kind in enumerate(kinds) if kind is not None])

    def score(
        self, asked: PromptPass, tokenizer: PreTrainedTokenizerBase, greedy: Tensor | None = None
    ) -> EvaluatedBatch:
        """Score a batch and count it.

        Args:
            asked: Prompts with labels or references.
            tokenizer: The model's tokenizer.
            greedy: `AnswerLoss.greedy` of the batch; answers known from it are not generated.
        """
        if self._labels is not None:
            found = self.answer(asked, tokenizer)
            for name, metric in self._metrics.items():
                metric.update(found.predictions[name].predicted, asked.batch.targets)
            return found
        if not self._answers.kinds:
            return EvaluatedBatch()
        answers = ExactMatch().judge(asked, tokenizer, greedy)
        self._answers.update(answers)
        return EvaluatedBatch(answers=answers)

    def list_parts(self, batch: MultimodalBatch) -> list[MultimodalBatch]:
        """Return the parts of a batch on which `answer` runs the model: with a kind, and without.

        Each is to be answered by itself where the model is edited for a batch.
        """
        if self._labels is not None:
            return [batch]
        rows: dict[bool, list[int]] = {True: [], False: []}
        for row, kind in enumerate(batch.kinds):
            rows[kind is not None].append(row)
        return [batch.take(own) for own in rows.values() if own]

    def answer(
        self, asked: PromptPass, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int = 128
    ) -> EvaluatedBatch:
        """Answer every sample of a batch, and count nothing.

        Args:
            asked: Prompts.
            tokenizer: The model's tokenizer.
            max_new_tokens: Length at which the answer to a free-form sample without a kind is cut.
        """
        if self._labels is not None:
            predictions: dict[str, Predictions] = {}
            for scorer in self.scorers:
                predictions[scorer.name] = scorer.classify(asked, tokenizer, self._labels)
            return EvaluatedBatch(predictions)
        scored = ExactMatch().judge(asked, tokenizer)
        rest = [row for row, kind in enumerate(asked.batch.kinds) if kind is None]
        if not rest:
            return EvaluatedBatch(answers=scored)
        free = asked.take(rest)
        texts = tokenizer.batch_decode(
            decode_answers(free, max_new_tokens), skip_special_tokens=True
        )
        named = zip(free.batch.sample_ids, map(str.strip, texts), strict=True)
        return EvaluatedBatch(answers=scored, texts=dict(named))

    def finish(self) -> dict[str, float]:
        """Compute the scores over all processes; return metric name -> value of those to log."""
        self.results = {name: metric.result() for name, metric in self._metrics.items()}
        self.exact_match = self._answers.result() if self._answers.kinds else None
        logged: dict[str, float] = {}
        for name, result in self.results.items():
            for measure in _LOGGED:
                logged[f"{name}/{measure}"] = getattr(result, measure)
        if self.exact_match is not None:
            logged["exact_match/accuracy"] = self.exact_match.overall.accuracy
            for kind, score in self.exact_match.per_kind.items():
                logged[f"exact_match/{kind}"] = score.accuracy
        return logged

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the scores that `finish` returns for the dataset that is prepared."""
        names = [f"{scorer}/{measure}" for scorer, measure in product(self._metrics, _LOGGED)]
        if self._answers.kinds:
            names += [f"exact_match/{kind}" for kind in ("accuracy", *self._answers.kinds)]
        return tuple(names)

    @property
    def _metrics(self) -> dict[str, ClassificationMetrics]:
        """Scorer name -> metric."""
        return cast(dict[str, ClassificationMetrics], dict(self._by_scorer.items()))
