"""What an engine of attention knockout takes and gives, and what all engines do alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.core.windows import Window
from lightning_mllm.analysis.forward.hidden_keys import HiddenKeys
from lightning_mllm.analysis.forward.out_of_memory import MemoryPieces
from lightning_mllm.analysis.forward.prompts import Prompts
from lightning_mllm.analysis.forward.suffix.budget import BudgetPlan
from lightning_mllm.analysis.forward.suffix.rows import RowVariant
from lightning_mllm.analysis.knockout.block import Block
from lightning_mllm.analysis.knockout.mask import (
    check_mask_attention,
    check_mask_window,
    masked_keys,
)
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import attention_of_layers


@dataclass(frozen=True)
class Case:
    """One knockout: a block, in a window of layers."""

    block: Block
    window: Window


@dataclass(frozen=True)
class Readings:
    """What the model says at the LAST position, without any block and in each case.

    Log-probabilities are over the whole output vocabulary, in float32, or in float64 for a model in
    float64. What is read without a block went the same way through the model as the case beside it.
    So in half precision the two differ by the block, and not by how each is rounded. Where nothing
    that LAST says can change, as with an empty source or target, both are those of the clean run,
    exactly.

    Attributes:
        ids: (batch, k) the vocabulary ids that are read: first what the clean run would say, its
            argmax, then those asked for.
        clean_logprobs: (batch, cases, k) log-probabilities of the ids without a block.
        clean_top: (batch, cases) the argmax without a block.
        logprobs: (batch, cases, k) log-probabilities of the ids.
        top: (batch, cases) the argmax.
        source_size: (batch, cases) number of positions in the case's source.
        target_size: (batch, cases) number of positions in its target.
        acts: (batch, cases) whether the case hides anything that could be attended to without it.
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

    @classmethod
    def unchanged(
        cls, clean: Tensor, ids: Tensor, variants: Sequence[RowVariant], engine: str
    ) -> Readings:
        """Return readings in which every case says what the clean run does.

        Args:
            clean: (batch, vocabulary) log-probabilities of the clean run.
            ids: (batch, k - 1) the ids asked for.
            variants: The cases, on these prompts.
            engine: Name of the engine.
        """
        top = clean.argmax(1, keepdim=True)
        ids = torch.cat([top, ids], dim=1)
        logprobs = clean.gather(1, ids)[:, None].repeat(1, len(variants), 1)
        tops = top.repeat(1, len(variants))
        hidden = [variant.hidden for variant in variants]
        return cls(
            ids,
            logprobs,
            tops,
            logprobs.clone(),
            tops.clone(),
            source_size=torch.stack([keys.source.sum(1) for keys in hidden], dim=1),
            target_size=torch.stack([keys.target.sum(1) for keys in hidden], dim=1),
            acts=torch.stack([keys.acts for keys in hidden], dim=1),
            engine=engine,
        )

    def put(self, cases: Sequence[int], changes: Tensor, **read: Tensor) -> None:
        """Fill in what was read in some cases, where it can differ from the clean run.

        Args:
            cases: Numbers of the cases.
            changes: (batch, these cases) bool, where they can differ.
            read: Name of the field -> what was read.
        """
        for name, values in read.items():
            own: Tensor = getattr(self, name)
            where = changes[..., None] if own.ndim == 3 else changes
            own[:, cases] = values.where(where, own[:, cases])

    @classmethod
    def join(cls, pieces: Sequence[Readings]) -> Readings:
        """Put the readings of consecutive prompts together."""
        tensors = {}
        for field in fields(cls):
            if field.name != "engine":
                tensors[field.name] = torch.cat([getattr(piece, field.name) for piece in pieces])
        return cls(**tensors, engine=pieces[0].engine)


class KnockoutEngine(ABC):
    """Reads what a model says while attention is blocked, in many cases at once.

    Before an engine's first result for a model, it checks that attention masks take effect in this
    model, and whatever else the engine relies on. When memory runs out, half as many prompts are
    run at a time.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        # model -> its attention, and whether it was checked on a prompt with an image
        self._checked: WeakKeyDictionary[nn.Module, tuple[str, bool]] = WeakKeyDictionary()
        self._pieces = MemoryPieces("prompts")

    @torch.no_grad()
    def run(
        self,
        backbone: Backbone,
        batch: MultimodalBatch,
        cases: Sequence[Case],
        ids: Tensor | None = None,
    ) -> Readings:
        """Run all cases on the batch's prompts.

        Args:
            backbone: The model, in eval mode.
            batch: With or without answers, which are not looked at; padded on either side.
            cases: Any mixture of blocks and windows.
            ids: (batch, k) vocabulary ids to read besides the clean run's argmax.

        Raises:
            ConfigError: The model is in train mode, or its attention takes no dense mask or ignores
                it; a case hides everything that a position can attend to, or names a layer or head
                that does not exist; there is no case.
            DataError: The batch lacks the positions of a segment.
            NotFiniteError: The model's log-probabilities are not finite.
        """
        _check(backbone, cases)
        prompts = Prompts.of(backbone, batch)
        hidden: dict[Block, HiddenKeys] = {}
        for block in dict.fromkeys(case.block for case in cases):
            hidden[block] = masked_keys(block, prompts.batch.spans, backbone)
            _check_something_is_left(hidden[block], prompts.batch)
        wanted = torch.empty(len(batch), 0, dtype=torch.long) if ids is None else ids
        wanted = wanted.to(prompts.batch.input_ids.device)
        self._check_once(backbone, prompts)
        plan = self.plan(backbone, prompts)

        def read(rows: Sequence[int]) -> Readings:
            some = {block: keys.take(rows) for block, keys in hidden.items()}
            variants = [
                RowVariant(some[case.block].within(case.window), case.window) for case in cases
            ]
            chosen = wanted[rows[0] : rows[-1] + 1]
            return self.read(backbone, prompts.take(rows), variants, chosen, plan)

        size = len(prompts) if plan is None else plan.prompts(len(prompts))
        found = Readings.join(self._pieces.run(range(len(prompts)), size, read))
        for logprobs in (found.clean_logprobs, found.logprobs):
            check_finite(logprobs, batch.sample_ids, "The model's log-probabilities")
        return found

    def _check_once(self, backbone: Backbone, prompts: Prompts) -> None:
        """Check the model on the first prompt, and on the first one with an image.

        It is checked once with each attention.
        """
        counts = prompts.batch.image_counts
        key = attention_of_layers(backbone), any(counts)
        if self._checked.get(backbone.model) not in (key, (key[0], True)):
            row = next((row for row, count in enumerate(counts) if count), 0)
            self.check(backbone, prompts.take(range(row, row + 1)))
            self._checked[backbone.model] = key

    @abstractmethod
    def read(
        self,
        backbone: Backbone,
        prompts: Prompts,
        variants: Sequence[RowVariant],
        ids: Tensor,
        plan: BudgetPlan | None,
    ) -> Readings:
        """Run all cases on these prompts at once."""

    def plan(self, backbone: Backbone, prompts: Prompts) -> BudgetPlan | None:
        """Return how much to run at a time; None for all prompts at once."""
        return None

    @abstractmethod
    def check(self, backbone: Backbone, prompts: Prompts) -> None:
        """Check, once for each model and on one prompt, what the engine relies on.

        Raises:
            ConfigError: The model is not as it has to be.
        """


def _check(backbone: Backbone, cases: Sequence[Case]) -> None:
    if not cases:
        raise ConfigError("There is nothing to block. Give at least one case.")
    if backbone.decoder.training:
        raise ConfigError(
            "The LLM is in train mode, so its answers could be random. Call model.eval() first."
        )
    check_mask_attention(backbone)
    for window in {case.window for case in cases}:
        check_mask_window(window, backbone)


def _check_something_is_left(keys: HiddenKeys, batch: MultimodalBatch) -> None:
    """Refuse to hide everything from a row, in prompts that are padded on the left."""
    visible = batch.attention_mask.bool() & ~keys.source
    blind = (keys.target & (keys.count_seen(visible) == 0)).any(1)
    if blind.any():
        raise ConfigError(
            f"{keys.name} hides everything that one of its rows can attend to, in sample "
            f"{batch.sample_ids[int(blind.int().argmax())]!r}, and attention to nothing is not "
            "defined. Choose a smaller source, or a target that starts later."
        )
