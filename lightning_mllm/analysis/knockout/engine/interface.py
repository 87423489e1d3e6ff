"""What an engine of attention knockout takes and gives, and what all engines do alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.core.windows import Window
from lightning_mllm.analysis.forward.out_of_memory import Pieces
from lightning_mllm.analysis.forward.prompts import Prompts
from lightning_mllm.analysis.knockout.block import Block
from lightning_mllm.analysis.knockout.mask import check_attention, check_window, head_mask, positions, reached
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import attention_of
from lightning_mllm.types import MultimodalBatch


@dataclass(frozen=True)
class Case:
    """One knockout: a block, in a window of layers."""

    block: Block
    window: Window


@dataclass(frozen=True)
class Readings:
    """What the model says at the LAST position, without any block and in each case.

    Log-probabilities are over the whole output vocabulary, in float32, or in float64 for a model in float64. What is
    read without a block went the same way through the model as the case beside it, so that in half precision the
    two differ by the block, and not by how each is rounded. Where nothing that LAST says can change, as with an empty
    source or target, both are those of the clean run, exactly.

    Attributes:
        ids: (batch, k) the vocabulary ids that are read: first what the clean run would say, its argmax, then those
            asked for.
        clean_logprobs: (batch, cases, k) log-probabilities of the ids without a block.
        clean_top: (batch, cases) the argmax without a block.
        logprobs: (batch, cases, k) log-probabilities of the ids.
        top: (batch, cases) the argmax.
        source_size: (batch, cases) number of positions in the case's source.
        target_size: (batch, cases) number of positions in its target.
        acts: (batch, cases) whether the case hides anything that is seen without it.
        engine: Name of the engine that computed them.
    """

    ids: Tensor
    clean_logprobs: Tensor
    clean_top: Tensor
    logprobs: Tensor
    top: Tensor
    source_size: Tensor
    target_size: Tensor
    acts: Tensor
    engine: str


@dataclass(frozen=True)
class Parts:
    """What an engine finds out about some prompts; for the fields see `Readings`."""

    ids: Tensor
    clean_logprobs: Tensor
    clean_top: Tensor
    logprobs: Tensor
    top: Tensor
    engine: str


class KnockoutEngine(ABC):
    """Reads what a model says while attention is blocked, in many cases at once.

    Before an engine's first result for a model it is seen to that the model heeds masks, and whatever else the engine
    rests on. When memory runs out, half as many prompts are run at a time.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self._checked: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # model -> its kind of attention
        self._pieces = Pieces("prompts")

    @torch.no_grad()
    def run(
        self, backbone: Backbone, batch: MultimodalBatch, cases: Sequence[Case], ids: Tensor | None = None
    ) -> Readings:
        """Run all cases on the batch's prompts.

        Args:
            backbone: The model, in eval mode.
            batch: With or without answers, which are not looked at; padded on either side.
            cases: Any mixture of blocks and windows.
            ids: (batch, k) vocabulary ids to read besides the clean run's argmax.

        Raises:
            ConfigError: The model is in train mode, or its attention takes no dense mask or ignores it; a case hides
                everything that a position can see, or names a layer or head that does not exist; there is no case.
            DataError: The batch lacks the positions of a segment.
            NotFiniteError: The model gives no numbers.
        """
        _check(backbone, cases)
        prompts = Prompts.of(backbone, batch)
        sets = {block: BlockSets.of(block, prompts.batch) for block in dict.fromkeys(case.block for case in cases)}
        wanted = torch.empty(len(batch), 0, dtype=torch.long) if ids is None else ids
        wanted = wanted.to(prompts.batch.input_ids.device)
        attention = attention_of(backbone)
        if self._checked.get(backbone.model) != attention:
            self.check(backbone, prompts.take(range(1)))
            self._checked[backbone.model] = attention
        parts = self._pieces.run(
            range(len(prompts)),
            self.plan(backbone, prompts, cases),
            lambda rows: self.read(backbone, prompts.take(rows), cases, wanted[rows[0] : rows[-1] + 1]),
        )
        found = _collect(parts, [sets[case.block] for case in cases])
        for read in (found.clean_logprobs, found.logprobs):
            check_finite(read, batch.sample_ids, "The model's log-probabilities")
        return found

    @abstractmethod
    def read(self, backbone: Backbone, prompts: Prompts, cases: Sequence[Case], ids: Tensor) -> Parts:
        """Run all cases on these prompts at once."""

    def plan(self, backbone: Backbone, prompts: Prompts, cases: Sequence[Case]) -> int:
        """Return how many of the prompts to run at a time."""
        return len(prompts)

    @abstractmethod
    def check(self, backbone: Backbone, prompts: Prompts) -> None:
        """Find out, once for each model and on one prompt, whether what the engine rests on holds for it.

        Raises:
            ConfigError: It does not.
        """


@dataclass(frozen=True)
class BlockSets:
    """A block's positions in some prompts.

    Attributes:
        source: (batch, sequence).
        target: (batch, sequence).
        reached: (batch, sequence), the targets that see a source position.
    """

    source: Tensor
    target: Tensor
    reached: Tensor

    @property
    def acts(self) -> Tensor:
        """(batch,) whether there is any."""
        return self.reached.any(1)

    @classmethod
    def of(cls, block: Block, batch: MultimodalBatch) -> BlockSets:
        """Find them, in prompts that are padded on the left.

        Raises:
            ConfigError: The block hides everything that one of its rows can see.
            DataError: The batch lacks the positions of a segment.
        """
        source, target = positions(batch.spans, block.source), positions(batch.spans, block.target)
        visible = batch.attention_mask.bool() & ~source
        blind = (target & (visible.cumsum(1) == 0)).any(1)
        if blind.any():
            raise ConfigError(
                f"{block} hides everything that one of its rows can see, in sample "
                f"{batch.sample_ids[int(blind.int().argmax())]!r}, and attention to nothing is not defined. Choose a "
                "smaller source, or a target that starts later."
            )
        return cls(source, target, reached(source, target))


def _check(backbone: Backbone, cases: Sequence[Case]) -> None:
    if not cases:
        raise ConfigError("There is nothing to block. Give at least one case.")
    if backbone.decoder.training:
        raise ConfigError("The LLM is in train mode, so its answers could be random. Call model.eval() first.")
    check_attention(backbone)
    for case in cases:
        check_window(case.window, backbone)
        head_mask(case.block, backbone)


def _collect(parts: Sequence[Parts], sets: Sequence[BlockSets]) -> Readings:
    """Put the pieces together; where nothing is blocked, the readings are the clean ones to the bit."""
    acting = torch.stack([each.acts for each in sets], dim=1)  # (batch, cases)
    clean, clean_top = (torch.cat([getattr(part, name) for part in parts]) for name in ("clean_logprobs", "clean_top"))
    return Readings(
        ids=torch.cat([part.ids for part in parts]),
        clean_logprobs=clean,
        clean_top=clean_top,
        logprobs=torch.cat([part.logprobs for part in parts]).where(acting[..., None], clean),
        top=torch.cat([part.top for part in parts]).where(acting, clean_top),
        source_size=torch.stack([each.source.sum(1) for each in sets], dim=1),
        target_size=torch.stack([each.target.sum(1) for each in sets], dim=1),
        acts=acting,
        engine=parts[0].engine,
    )
