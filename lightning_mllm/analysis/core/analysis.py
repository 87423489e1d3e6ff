"""What all analyses have in common: batches in, one labelled result out.

They are called as torchmetrics' metrics are, and need no Trainer:

    analysis = InformationFlow(blocks=["question->last"])
    analysis.prepare(tokenizer, folder=Path("flow"))  # without a folder the rows stay in memory
    for batch in loader:
        analysis.update(backbone, batch)
    result = analysis.compute()

Called again with the same folder after a kill, the same lines continue where they were.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import KnownAnswers
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Sample


class Analysis(ABC):
    """An experiment on a model: batch by batch, then a result.

    Args:
        label: Name of the analysis, by default its class's.

    Raises:
        ConfigError: The label can't be the name of a folder.
    """

    default_name: ClassVar[str]
    name: str
    """Names the files; two analyses of one run have different ones."""

    def __init__(self, *, label: str = "") -> None:
        self.name = label or self.default_name
        if self.name != Path(self.name).name:
            raise ConfigError(
                f"The label of an analysis names a folder, so it can't be {label!r}. Leave slashes "
                "out."
            )
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._source: Mapping[str, Any] = {}

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """The options that decide the result, as plain data."""

    @property
    def making(self) -> dict[str, Any]:
        """What decides the result: settings and source."""
        return {"analysis": dict(self.settings), "source": dict(self._source)}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer.

        Raises:
            ConfigError: There is none, since the analysis was not prepared.
        """
        if self._tokenizer is None:
            raise ConfigError(
                f"{self.name} needs the tokenizer: call prepare(tokenizer) before the first batch."
            )
        return self._tokenizer

    @abstractmethod
    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse samples that can't be analysed, at set-up.

        Raises:
            ConfigError: There is one.
        """

    def check_model(self, backbone: Backbone) -> None:  # noqa: B027 - most work with every family
        """Refuse a model that can't be analysed, before it is run.

        Raises:
            ConfigError: The analysis does not work with the model's family, or with this model.
        """

    @abstractmethod
    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path | None = None,
        source: Mapping[str, Any] | None = None,
        rank: int = 0,
        answers: KnownAnswers | None = None,
    ) -> None:
        """Get ready for the first batch, or for the one after those whose results the folder has.

        Args:
            tokenizer: The model's.
            folder: Where the results of single samples are written, by all processes; without it
                they stay in memory.
            source: Which model and data these are, as plain data. It becomes part of the result's
                settings.
            rank: Number of this process.
            answers: What the model answers, known to all analyses of one run; without it each asks
                for itself.

        Raises:
            ConfigError: What is in the folder was created with different settings.
        """

    @abstractmethod
    def update(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Take in a batch."""

    def settle(self) -> None:  # noqa: B027 - most write as they go
        """Do what needs all batches: called in each process, after its last one.

        The model is as it was for the batches, and an analysis may run it here.
        """

    @abstractmethod
    def merge(self) -> None:
        """Put together what all processes have found; one of them does, when all have finished."""

    @abstractmethod
    def compute(self) -> AnalysisResult:
        """Return the result of all batches so far, of all processes where they have a folder."""

    def explain_nothing(self) -> str:
        """Return why a result of no sample is one, and the way out."""
        return f"{self.name} has measured no sample."

    @abstractmethod
    def reset(self) -> None:
        """Forget all batches; what is in a folder stays there."""
