"""The definition, computed where it can make a difference, and nowhere else.

In a causal decoder a block changes no row before its first target position, in no layer; and before the window's first
layer it changes nothing. So after one clean pass there remain, per case, the rows from the first target on, from the
window's first layer on: behind keys and values of the clean run. All cases go through the layers side by side, and
with them, for what is read without a block, the same rows with nothing hidden.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import ClassVar, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.forward.float32_head import head_logits
from lightning_mllm.analysis.forward.out_of_memory import Pieces, free_bytes
from lightning_mllm.analysis.forward.prompts import Prompts, log_probabilities
from lightning_mllm.analysis.forward.suffix.budget import Plan
from lightning_mllm.analysis.forward.suffix.clean_run import CleanRun, UnfitError
from lightning_mllm.analysis.forward.suffix.compatibility import check_rows
from lightning_mllm.analysis.forward.suffix.rows import Variant, run_rows
from lightning_mllm.analysis.knockout.engine.interface import BlockSets, Case, KnockoutEngine, Parts
from lightning_mllm.analysis.knockout.engine.reference import ReferenceEngine
from lightning_mllm.analysis.knockout.mask import head_mask
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers

_LOG = logging.getLogger(__name__)
_HEAD_ROWS = 256


class SuffixEngine(KnockoutEngine):
    """One clean pass, then only the rows that can change.

    A model must be causal, keep keys and values of all positions, heed masks, and call its layers in a way that is
    understood; `suffix_trust` sees to it.

    Attributes:
        memory: Bytes that may be used besides the weights; None for half of what is free.
        strict: Whether a model that does not allow all this is refused. Otherwise the reference engine does the work,
            and a warning says so.
    """

    name: ClassVar[str] = "suffix"

    def __init__(self, memory: int | None = None, strict: bool = False) -> None:
        super().__init__()
        if memory is not None and memory <= 0:
            raise ConfigError(f"A memory budget of {memory} bytes can't be kept. Give more, or None for what is free.")
        self.memory, self.strict = memory, strict
        self._reference = ReferenceEngine()
        self._unfit: WeakSet[nn.Module] = WeakSet()
        self._side_by_side = Pieces("knockouts")  # of one prompt; of several, there are first fewer prompts at a time

    def check(self, backbone: Backbone, prompts: Prompts) -> None:
        """Try the rows' code on the prompts.

        Raises:
            ConfigError: The model does not allow it, and `strict` does not allow the reference engine.
        """
        self._unfit.discard(backbone.model)
        try:
            check_rows(backbone, prompts)
        except UnfitError as error:
            if self.strict:
                raise ConfigError(
                    f"The suffix engine can't be used with this {type(backbone.model).__name__}: {error}. Use "
                    "engine=auto or engine=reference."
                ) from error
            _LOG.warning(
                "The suffix engine can't be used with this %s: %s. The reference engine, which is slower, does the "
                "work instead.",
                type(backbone.model).__name__,
                error,
            )
            self._reference.check(backbone, prompts)
            self._unfit.add(backbone.model)

    def plan(self, backbone: Backbone, prompts: Prompts, cases: Sequence[Case]) -> int:
        """Return how many prompts' keys and values fit."""
        return self._plan(backbone, prompts).prompts(len(prompts))

    def read(self, backbone: Backbone, prompts: Prompts, cases: Sequence[Case], ids: Tensor) -> Parts:
        """Run all cases on these prompts: the clean pass, then the rows."""
        if backbone.model in self._unfit:
            return self._reference.read(backbone, prompts, cases, ids)
        plan, groups = self._plan(backbone, prompts), _Groups.of(backbone, prompts, cases)
        clean = CleanRun.of(backbone, prompts, groups.tail)
        clean_logprobs = log_probabilities(clean.logits)
        ids = torch.cat([clean_logprobs.argmax(1, keepdim=True), ids], dim=1)
        found = _Found.unchanged(clean_logprobs.gather(1, ids), ids[:, 0], len(cases))
        for start, numbers in groups:
            parts = self._side_by_side.run(
                [groups.variants[each] for each in numbers],
                plan.side_by_side(start, len(prompts)),
                partial(_read, backbone, clean, start, ids),
                weight=clean.real.shape[1] - start,
                halve=len(prompts) == 1,
            )
            found.put(numbers, parts, groups.reached[:, numbers])
        return Parts(ids, *found, self.name)

    def _plan(self, backbone: Backbone, prompts: Prompts) -> Plan:
        memory = self.memory or free_bytes(backbone.model.device) // 2
        length = prompts.batch.input_ids.shape[1]
        return Plan.of(backbone.decoder.config, length, backbone.model.dtype, memory)


@dataclass(frozen=True)
class _Groups:
    """The cases that can change anything, those that start at the same position together.

    Attributes:
        variants: Per case.
        starts: Per case, its first target position that sees a source.
        reached: (batch, cases) whether LAST can change: it can't where nothing is hidden, nor when the window holds
            but the last layer and LAST itself is not in the target.
    """

    variants: Sequence[Variant]
    starts: Sequence[int]
    reached: Tensor

    @classmethod
    def of(cls, backbone: Backbone, prompts: Prompts, cases: Sequence[Case]) -> _Groups:
        last = len(decoder_layers(backbone)) - 1
        blocks = dict.fromkeys(case.block for case in cases)
        sets = {block: BlockSets.of(block, prompts.batch) for block in blocks}
        heads = {block: head_mask(block, backbone) for block in blocks}
        first = {block: int(each.reached.any(0).int().argmax()) for block, each in sets.items()}
        variants, reached = [], []
        for case in cases:
            found = sets[case.block]
            variants.append(Variant(found.source, found.target, heads[case.block], case.window))
            reached.append(found.acts & (found.target[:, -1] | (case.window.start < last)))
        return cls(variants, [first[case.block] for case in cases], torch.stack(reached, dim=1))

    @property
    def tail(self) -> int:
        """The first position from which rows are needed."""
        return min((start for start, _ in self), default=self.variants[0].source.shape[1])

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        """Yield a position and the numbers of the cases that start there, by their windows' first layers."""

        def together(number: int) -> tuple[int, bool]:
            return self.starts[number], self.variants[number].heads is not None

        some = self.reached.any(0).tolist()
        order = sorted(
            (number for number, any_reached in enumerate(some) if any_reached),
            key=lambda number: (together(number), self.variants[number].window.start),
        )
        for (start, _), numbers in groupby(order, key=together):
            yield start, list(numbers)


class _Found(NamedTuple):
    """What is read without a block and with it: log-probabilities, (batch, cases, k), and argmax, (batch, cases)."""

    before: Tensor
    before_top: Tensor
    after: Tensor
    after_top: Tensor

    @classmethod
    def unchanged(cls, logprobs: Tensor, top: Tensor, cases: int) -> _Found:
        """Take the clean run's, (batch, k) and (batch,), for all cases."""
        before, before_top = logprobs[:, None].repeat(1, cases, 1), top[:, None].repeat(1, cases)
        return cls(before, before_top, before.clone(), before_top.clone())

    def put(self, numbers: list[int], parts: Sequence[_Found], reached: Tensor) -> None:
        """Put in what was found of some cases, where they can change anything, (batch, some cases)."""
        for own, new in zip(self, zip(*parts, strict=True), strict=True):
            mask = reached[..., None] if own.ndim == 3 else reached
            own[:, numbers] = torch.cat(new, dim=1).where(mask, own[:, numbers])


def _read(backbone: Backbone, clean: CleanRun, start: int, ids: Tensor, variants: Sequence[Variant]) -> _Found:
    """Run variants, and read the ids, (batch, k), and the argmax behind what leaves the last layer."""
    hidden = run_rows(decoder_layers(backbone), clean, start, variants)
    batch, count, _ = hidden.shape
    wanted = ids[:, None].expand(-1, count, -1).flatten(0, 1)
    logprobs, tops = [], []
    for rows, chosen in zip(hidden.flatten(0, 1).split(_HEAD_ROWS), wanted.split(_HEAD_ROWS), strict=True):
        all_ids = log_probabilities(head_logits(backbone.lm_head, backbone.decoder.norm(rows)))  # type: ignore[operator]
        logprobs.append(all_ids.gather(1, chosen))
        tops.append(all_ids.argmax(1))
    read, said = torch.cat(logprobs).view(batch, count, -1), torch.cat(tops).view(batch, count)
    return _Found(read[:, :1].expand_as(read[:, 1:]), said[:, :1].expand_as(said[:, 1:]), read[:, 1:], said[:, 1:])
