"""Evaluates answers: scorers that all see the same prompts, and the scores of a split."""

from lightning_mllm.evaluation.classification.answer_parser import (
    INVALID,
    AnswerParser,
    normalise,
)
from lightning_mllm.evaluation.classification.generation import Generation
from lightning_mllm.evaluation.classification.likelihood import Likelihood
from lightning_mllm.evaluation.classification.metrics import (
    ClassificationMetrics,
    ClassificationResult,
)
from lightning_mllm.evaluation.classification.scorer import Predictions, Scorer
from lightning_mllm.evaluation.clip import ClipClassifier
from lightning_mllm.evaluation.evaluator import Evaluator
from lightning_mllm.evaluation.hallucination.chair import ChairMetrics, ChairResult, Mentions
from lightning_mllm.evaluation.hallucination.objects import ObjectVocabulary, read_objects
from lightning_mllm.evaluation.hallucination.pope import PopeMetrics, PopeResult, PopeScore
from lightning_mllm.evaluation.open_answers.answer_metrics import (
    AnswerMetrics,
    AnswerResult,
    AnswerScore,
)
from lightning_mllm.evaluation.open_answers.exact_match import ExactMatch, Match, OpenAnswer
from lightning_mllm.evaluation.open_answers.known_answers import KnownAnswers
from lightning_mllm.evaluation.prompt_pass import PromptPass
from lightning_mllm.statistics.interval import Interval
from lightning_mllm.statistics.shares import Share

__all__ = [
    "INVALID",
    "AnswerMetrics",
    "AnswerParser",
    "AnswerResult",
    "AnswerScore",
    "ChairMetrics",
    "ChairResult",
    "ClassificationMetrics",
    "ClassificationResult",
    "ClipClassifier",
    "Evaluator",
    "ExactMatch",
    "Generation",
    "Interval",
    "KnownAnswers",
    "Likelihood",
    "Match",
    "Mentions",
    "ObjectVocabulary",
    "OpenAnswer",
    "PopeMetrics",
    "PopeResult",
    "PopeScore",
    "Predictions",
    "PromptPass",
    "Scorer",
    "Share",
    "normalise",
    "read_objects",
]
