"""What all analyses have in common: batches in, one labelled result out.

The rhythm is that of torchmetrics, and needs no Trainer:

    analysis = InformationFlow(blocks=["question->last"])
    analysis.prepare(tokenizer, folder=Path("flow"))  # without a folder the rows stay in memory
    for batch in loader:
        analysis.update(backbone, batch)
    result = analysis.compute()

Called again with the same folder after a kill, the same lines go on where they were.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.evaluation import KnownAnswers
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import MultimodalBatch, Sample


class Analysis(ABC):
    """An experiment on a model: batch by batch, then a result."""

    name: str
    """Names the files; two analyses of one run have different ones."""

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """The options that decide the result, as plain data."""

    @abstractmethod
    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse samples that can't be looked into, at set-up.

        Raises:
            ConfigError: There is one.
        """

    @abstractmethod
    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path | None = None,
        source: Mapping[str, Any] | None = None,
        share: int = 0,
        answers: KnownAnswers | None = None,
    ) -> None:
        """Get ready for the first batch, or, where the folder has results of samples, for the one behind them.

        Args:
            tokenizer: The model's.
            folder: For the results of single samples, of all processes; without it they stay in memory.
            source: Which model and data these are: plain data, and part of the result's settings.
            share: Number of this process.
            answers: Of the model, which analyses of one run have in common; without it each asks for itself.

        Raises:
            ConfigError: What is in the folder was made otherwise.
        """

    @abstractmethod
    def update(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Take in a batch."""

    def settle(self) -> None:  # noqa: B027 - most write as they go
        """Write down what is not yet: each process, behind its last batch."""

    @abstractmethod
    def merge(self) -> None:
        """Put together what all processes have found; one of them does, when all have finished."""

    @abstractmethod
    def compute(self) -> AnalysisResult:
        """Return the result of all batches so far, of all processes where they have a folder."""

    @abstractmethod
    def reset(self) -> None:
        """Forget all batches; what is in a folder stays there."""
