"""One evaluation, batch by batch: classes where samples have labels, exact match where open answers have kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation.classification.metrics import ClassificationMetrics, ClassificationResult
from lightning_mllm.evaluation.classification.scorer import Predictions, Scorer
from lightning_mllm.evaluation.open_answers.exact_match import ExactMatch, OpenAnswer
from lightning_mllm.evaluation.open_answers.metrics import AnswerMetrics, AnswerResult
from lightning_mllm.types import LabelSet, MultimodalBatch


@dataclass(frozen=True)
class Scored:
    """What came out for a batch.

    Attributes:
        predictions: Scorer name -> what it says; empty for free-form data.
        answers: Of the free-form samples that have a kind.
    """

    predictions: dict[str, Predictions] = field(default_factory=dict)
    answers: tuple[OpenAnswer, ...] = ()


class Evaluator(nn.Module):
    """Scores batches and adds up, over all processes; a module because its counts live on the model's device.

    Args:
        scorers: How answers become predictions on classification data.

    Attributes:
        results: Scorer name -> its scores in the last evaluation; empty for free-form data.
        exact_match: Scores of the open answers of the last evaluation; None if there were none.

    Raises:
        ConfigError: Two scorers have one name.
    """

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        super().__init__()
        if len({scorer.name for scorer in scorers}) < len(scorers):
            raise ConfigError("model.scorers names the same scorer twice; each kind can stand there once.")
        self.scorers = tuple(scorers)
        self.results: dict[str, ClassificationResult] = {}
        self.exact_match: AnswerResult | None = None
        self._labels: LabelSet | None = None
        self._by_scorer = nn.ModuleDict()
        self._answers = AnswerMetrics(())

    def prepare(self, labels: LabelSet | None, kinds: tuple[str, ...]) -> None:
        """Make the metrics of a dataset, unless they are made.

        Args:
            labels: Its classes; None for free-form data.
            kinds: All its kinds of questions; empty where answers are not scored.

        Raises:
            DataError: A kind has a name that it can't have.
        """
        if labels != self._labels:
            self._labels = labels
            self._by_scorer = nn.ModuleDict()
            if labels is not None:
                self._by_scorer.update({scorer.name: ClassificationMetrics(labels.names) for scorer in self.scorers})
        if kinds != self._answers.kinds:
            self._answers = AnswerMetrics(kinds)

    def reset(self) -> None:
        """Start the counts anew."""
        for metric in (*self._metrics.values(), self._answers):
            metric.reset()

    def asked(self, batch: MultimodalBatch) -> MultimodalBatch:
        """Return the samples of a batch that `score` runs the model on, if no answer is known."""
        if self._labels is not None:
            return batch
        kinds = batch.kinds if self._answers.kinds else ()
        return batch.take([row for row, kind in enumerate(kinds) if kind is not None])

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch: MultimodalBatch,
        greedy: Tensor | None = None,
    ) -> Scored:
        """Score a batch and count it; `greedy` is that of its `AnswerLoss` and spares open answers' generation."""
        if self._labels is not None:
            predictions = {
                scorer.name: scorer.predict(model, tokenizer, batch, self._labels) for scorer in self.scorers
            }
            for name, metric in self._metrics.items():
                metric.update(predictions[name].predicted, batch.targets)
            return Scored(predictions)
        if not self._answers.kinds:
            return Scored()
        answers = ExactMatch().evaluate(model, tokenizer, batch, greedy)
        self._answers.update(answers)
        return Scored(answers=answers)

    def finish(self) -> dict[str, float]:
        """Compute the scores over all processes, and return those that are logged by their names."""
        self.results = {name: metric.result() for name, metric in self._metrics.items()}
        self.exact_match = self._answers.result() if self._answers.kinds else None
        logged = {
            f"{name}/{key}": float(getattr(result, key))
            for name, result in self.results.items()
            for key in ("accuracy", "macro_f1", "invalid_rate")
        }
        if self.exact_match is not None:
            logged["exact_match/accuracy"] = self.exact_match.overall.accuracy
            logged |= {f"exact_match/{kind}": score.accuracy for kind, score in self.exact_match.per_kind.items()}
        return logged

    @property
    def _metrics(self) -> dict[str, ClassificationMetrics]:
        """Scorer name -> its metric."""
        return {name: metric for name, metric in self._by_scorer.items() if isinstance(metric, ClassificationMetrics)}
