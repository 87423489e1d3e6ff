"""The definition, computed where it can make a difference, and nowhere else.

In a causal decoder a block changes no row before its first target position, in no layer; and before the window's first
layer it changes nothing. So after one clean pass there remain, per case, the rows from the first target on, from the
window's first layer on: behind keys and values of the clean run. All cases go through the layers side by side.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.blocks import Window
from lightning_mllm.analysis.clean_run import CleanRun, UnfitError
from lightning_mllm.analysis.knockout import attention_of, decoder_layers, head_mask, mask_dtype
from lightning_mllm.analysis.knockout_engine import BlockSets, Case, KnockoutEngine, Parts
from lightning_mllm.analysis.memory import Pieces, free_bytes
from lightning_mllm.analysis.prompt_pass import Prompts, log_probabilities
from lightning_mllm.analysis.reference_engine import ReferenceEngine
from lightning_mllm.analysis.suffix_plan import Plan
from lightning_mllm.analysis.suffix_rows import Variant, run_rows
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone

_LOG = logging.getLogger(__name__)
_HEAD_ROWS = 256
_REPLAYED_ROWS = 8
# how far, relative to the largest logit, a replayed clean run may be from the model's own (norms are in float32)
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class SuffixEngine(KnockoutEngine):
    """One clean pass, then only the rows that can change.

    A model must be causal, keep keys and values of all positions, and call its layers in a way that is understood.
    Before the first result for a model the clean run of one prompt is replayed, whole and in part, and compared with
    the model's own logits.

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
        self._side_by_side = Pieces("knockouts")

    def check(self, backbone: Backbone, prompts: Prompts) -> None:
        """Replay a clean run and compare.

        Raises:
            ConfigError: The model does not allow it, and `strict` does not allow the reference engine.
        """
        self._unfit.discard(backbone.model)
        try:
            _replay(backbone, prompts)
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
            self._unfit.add(backbone.model)
        super().check(backbone, prompts)

    def plan(self, backbone: Backbone, prompts: Prompts, cases: Sequence[Case]) -> int:
        """Return how many prompts' keys and values fit."""
        return self._plan(backbone, prompts).prompts

    def read(self, backbone: Backbone, prompts: Prompts, cases: Sequence[Case], ids: Tensor) -> Parts:
        """Run all cases on these prompts: the clean pass, then the rows."""
        if backbone.model in self._unfit:
            return self._reference.read(backbone, prompts, cases, ids)
        groups = _Groups.of(backbone, prompts, cases)
        clean = CleanRun.of(backbone, prompts, groups.tail)
        clean_logprobs = log_probabilities(clean.logits)
        ids = torch.cat([clean_logprobs.argmax(1, keepdim=True), ids], dim=1)
        logprobs = clean_logprobs.gather(1, ids)[:, None].repeat(1, len(cases), 1)
        top = ids[:, :1].repeat(1, len(cases))
        plan = self._plan(backbone, prompts)
        for start, numbers in groups:
            rows = partial(run_rows, decoder_layers(backbone), clean, start)
            parts = self._side_by_side.run([groups.variants[each] for each in numbers], plan.side_by_side(start), rows)
            read, said = _read(backbone, torch.cat(parts, dim=1), ids)
            reached = groups.reached[:, numbers]
            logprobs[:, numbers] = read.where(reached[..., None], logprobs[:, numbers])
            top[:, numbers] = said.where(reached, top[:, numbers])
        return Parts(ids, clean_logprobs.gather(1, ids), logprobs, top, self.name)

    def _plan(self, backbone: Backbone, prompts: Prompts) -> Plan:
        memory = self.memory or free_bytes(backbone.model.device) // 2
        return Plan.of(backbone.decoder.config, prompts.batch.input_ids.shape, memory)


@dataclass(frozen=True)
class _Groups:
    """The cases that can change anything, those that start at the same position together.

    Attributes:
        variants: Per case.
        starts: Per case, its first target position.
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
        first = {block: int((each.target & each.acts[:, None]).any(0).int().argmax()) for block, each in sets.items()}
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


def _read(backbone: Backbone, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of the ids and the argmax behind what leaves the last layer.

    Args:
        backbone: The model.
        hidden: (batch, cases, width).
        ids: (batch, k).
    """
    batch, count, _ = hidden.shape
    wanted = ids[:, None].expand(-1, count, -1).flatten(0, 1)
    logprobs, tops = [], []
    for rows, chosen in zip(hidden.flatten(0, 1).split(_HEAD_ROWS), wanted.split(_HEAD_ROWS), strict=True):
        all_ids = log_probabilities(backbone.lm_head(backbone.decoder.norm(rows)))  # type: ignore[operator]
        logprobs.append(all_ids.gather(1, chosen))
        tops.append(all_ids.argmax(1))
    return torch.cat(logprobs).view(batch, count, -1), torch.cat(tops).view(batch, count)


def _replay(backbone: Backbone, prompts: Prompts) -> None:
    """Compute the clean logits with the rows' code: all rows, and the last few in two variants.

    Raises:
        UnfitError: They are not the model's own, or can't be computed.
    """
    clean = CleanRun.of(backbone, prompts, 0)
    layers = decoder_layers(backbone)
    nothing = torch.zeros_like(clean.real)
    whole, later = (Variant(nothing, nothing, None, Window(start, start, start + 1)) for start in (0, len(layers) // 2))
    length = clean.real.shape[1]
    own = log_probabilities(clean.logits)
    tolerance = _TOLERANCE[mask_dtype(clean.residuals[0])] * float(clean.logits.abs().max().clamp(min=1))
    for start, variants in ((0, [whole]), (max(0, length - _REPLAYED_ROWS), [whole, later])):
        try:
            hidden = run_rows(layers, clean, start, variants)
            logits = backbone.lm_head(backbone.decoder.norm(hidden))  # type: ignore[operator]
        except (TypeError, RuntimeError, IndexError, AttributeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UnfitError(f"its layers can't be called for single rows ({error})") from error
        off = float((log_probabilities(logits) - own[:, None]).abs().max())
        if not off <= tolerance:
            raise UnfitError(
                f"with {attention_of(backbone)} attention, a clean run that was replayed from position {start} on has "
                f"log-probabilities that are off by {off:.2g}, more than {tolerance:.2g}, so it is not causal or "
                "computes something between its layers"
            )
