"""What a scorer is: a way to get a class out of the model for each sample of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_mllm.types import LabelSet, MultimodalBatch


@dataclass(frozen=True)
class Predictions:
    """What a scorer says about a batch.

    Attributes:
        answers: Per sample, the text: generated, or the name of the most likely class.
        predicted: (batch,) class indices, -1 where the answer names no class.
        scores: (batch, classes) float32 log-probability of each class as the answer, where the scorer has them.
    """

    answers: tuple[str, ...]
    predicted: Tensor
    scores: Tensor | None = None


@dataclass(frozen=True)
class Scorer(ABC):
    """Classifies the samples of a batch; all scorers see the same prompts."""

    name: ClassVar[str]

    @abstractmethod
    def predict(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: MultimodalBatch, labels: LabelSet
    ) -> Predictions:
        """Classify every sample of the batch, whose answers, if it has any, are not looked at."""
