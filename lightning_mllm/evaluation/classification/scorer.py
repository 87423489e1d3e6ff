"""What a scorer is: a way to get a class from the model for each sample of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.evaluation.prompt_pass import PromptPass
from lightning_mllm.types import LabelSet


@dataclass(frozen=True)
class Predictions:
    """The predictions of a scorer for a batch.

    Attributes:
        answers: Text per sample: generated, or the name of the most likely class.
        predicted: (batch,) class indices, -1 where the answer names no class.
        scores: (batch, classes), log-probability of each class as the answer, in float32 or better;
            None if the scorer does not compute them.
    """

    answers: tuple[str, ...]
    predicted: Tensor
    scores: Tensor | None = None


@dataclass(frozen=True)
class Scorer(ABC):
    """Classifies the samples of a batch; all scorers see the same prompts."""

    name: ClassVar[str]

    @abstractmethod
    def classify(
        self, asked: PromptPass, tokenizer: PreTrainedTokenizerBase, labels: LabelSet
    ) -> Predictions:
        """Classify every sample; answers in the batch are not used.

        Args:
            asked: The prompts; other scorers go on from the same pass.
            tokenizer: The model's tokenizer.
            labels: The classes.
        """

    def predict(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch: MultimodalBatch,
        labels: LabelSet,
    ) -> Predictions:
        """Classify every sample of a batch, after a pass over its prompts."""
        return self.classify(PromptPass(model, batch), tokenizer, labels)
