"""The definition, computed only where a block can make a difference.

In a causal decoder a block changes no row before its first target position, in no layer; and before
the window's first layer it changes nothing. So one clean pass is followed, per case, by the rows
from the first target on, from the window's first layer on, which attend to keys and values of the
clean run. All cases go through the layers side by side. With them go the same rows with nothing
hidden, for what is read without a block.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.forward.float32_head import head_states_at_once, next_token_head_logits
from lightning_mllm.analysis.forward.out_of_memory import MemoryPieces
from lightning_mllm.analysis.forward.prompts import Prompts, prompt_log_probabilities
from lightning_mllm.analysis.forward.suffix.budget import BudgetPlan
from lightning_mllm.analysis.forward.suffix.clean_run import CleanRun, UnfitRunError
from lightning_mllm.analysis.forward.suffix.compatibility import check_compatibility
from lightning_mllm.analysis.forward.suffix.rows import RowVariant, run_rows
from lightning_mllm.analysis.knockout.engine.base import KnockoutEngine, Readings
from lightning_mllm.analysis.knockout.engine.reference import ReferenceEngine
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.free_memory import free_memory
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.progress import show_progress

EngineName = Literal["auto", "suffix", "reference"]

logger = logging.getLogger(__name__)


def choose_engine(name: EngineName = "auto", memory: int | None = None) -> KnockoutEngine:
    """Make an engine.

    Args:
        name: `reference` runs the whole model for each case. `suffix` computes only what can
            change; a model that does not allow this is refused. `auto` does the same, but leaves
            such a model to the reference engine, and logs a warning.
        memory: Bytes that the suffix engine may use besides the weights; by default half of what is
            free.
    """
    if name == "reference":
        return ReferenceEngine()
    return SuffixEngine(memory, strict=name == "suffix")


class SuffixEngine(KnockoutEngine):
    """One clean pass, then only the rows that can change.

    The model must see what its family says, keep keys and values of all positions, respect masks,
    and call its layers in a way that is understood. This is checked before the first result
    (`forward.suffix.compatibility`).

    Attributes:
        memory: Bytes that may be used besides the weights; None for half of what is free.
        strict: Whether a model that does not allow all this is refused. Otherwise the reference
            engine does the work, and a warning says so.
    """

    name: ClassVar[str] = "suffix"

    def __init__(self, memory: int | None = None, strict: bool = False) -> None:
        super().__init__()
        if memory is not None and memory <= 0:
            raise ConfigError(
                f"A memory budget of {memory} bytes can't be kept. Give more, or None for what is "
                "free."
            )
        self.memory, self.strict = memory, strict
        self._reference = ReferenceEngine()
        self._unfit: WeakSet[nn.Module] = WeakSet()
        # of one prompt; of several, fewer prompts at a time are tried first
        self._side_by_side = MemoryPieces("knockouts")

    def check(self, backbone: Backbone, prompts: Prompts) -> None:
        """Try the rows' code on the prompts.

        Raises:
            ConfigError: The model does not allow it, and `strict` does not allow the reference
                engine.
        """
        self._unfit.discard(backbone.model)
        try:
            check_compatibility(backbone, prompts)
        except UnfitRunError as error:
            self._give_way(backbone, prompts, error)

    def _give_way(self, backbone: Backbone, prompts: Prompts, error: UnfitRunError) -> None:
        """Leave the model to the reference engine, or refuse it."""
        name = type(backbone.model).__name__
        if self.strict:
            raise ConfigError(
                f"The suffix engine can't be used with this {name}: {error}. Use engine=auto "
                "or engine=reference."
            ) from error
        logger.warning(
            "The suffix engine can't be used with this %s: %s. The reference engine, which is "
            "slower, does the work instead.",
            name,
            error,
        )
        self._reference.check(backbone, prompts.take(range(1)))
        self._unfit.add(backbone.model)

    def plan(self, backbone: Backbone, prompts: Prompts) -> BudgetPlan:
        """Return what fits into the memory."""
        memory = self.memory or free_memory(backbone.model.device) // 2
        length = prompts.batch.input_ids.shape[1]
        return BudgetPlan.of(backbone.decoder.config, length, backbone.model.dtype, memory)

    def read(
        self,
        backbone: Backbone,
        prompts: Prompts,
        variants: Sequence[RowVariant],
        ids: Tensor,
        plan: BudgetPlan | None,
    ) -> Readings:
        """Run all cases on these prompts: the clean pass, then the rows."""
        if backbone.model in self._unfit:
            return self._reference.read(backbone, prompts, variants, ids)
        assert plan is not None  # of this engine
        changes = _can_change(variants, len(decoder_layers(backbone)))
        groups = _group_by_start(variants, changes.any(0).tolist())
        length = prompts.batch.input_ids.shape[1]
        tail = min((start for start, _ in groups), default=length)
        try:
            clean = CleanRun.of(backbone, prompts, tail)
        except UnfitRunError as error:  # prompts that are longer than a window, after shorter ones
            self._give_way(backbone, prompts, error)
            return self._reference.read(backbone, prompts, variants, ids)
        readings = Readings.unchanged(
            prompt_log_probabilities(clean.logits), ids, variants, self.name
        )
        with show_progress("Knockouts of a batch", sum(len(group) for _, group in groups)) as bar:
            for start, group in groups:

                def read_some(cases: Sequence[int], start: int = start) -> None:
                    some = [variants[case] for case in cases]
                    read = _read_rows(backbone, clean, start, readings.ids, some)
                    readings.put(cases, changes[:, cases], **read)
                    bar.advance(len(cases))

                self._side_by_side.run(
                    group,
                    plan.side_by_side(start, len(prompts)),
                    read_some,
                    weight=length - start,
                    halve=len(prompts) == 1,
                )
        return readings


def _can_change(variants: Sequence[RowVariant], depth: int) -> Tensor:
    """Return whether a case can change what LAST says, (batch, cases).

    It can't where nothing is hidden, nor when the window holds only the last layer and LAST itself
    is not in the target.
    """
    columns = []
    for variant in variants:
        hidden = variant.hidden
        reaches_last = hidden.target[:, -1] | (variant.window.start < depth - 1)
        columns.append(hidden.acts & reaches_last)
    return torch.stack(columns, dim=1)


def _group_by_start(
    variants: Sequence[RowVariant], changing: Sequence[bool]
) -> list[tuple[int, list[int]]]:
    """Put the cases together whose rows start at the same position; all heads apart from some.

    Args:
        variants: The cases.
        changing: Whether a case can change anything; the others are in no group.

    Returns:
        Positions, in order, and the numbers of the cases, by their windows' first layers.
    """
    together: dict[tuple[int, bool], list[int]] = {}
    for case, variant in enumerate(variants):
        if changing[case]:
            key = (variant.hidden.first_changed, variant.hidden.heads is not None)
            together.setdefault(key, []).append(case)
    groups = []
    for (start, _), cases in sorted(together.items()):
        groups.append((start, sorted(cases, key=lambda case: variants[case].window.start)))
    return groups


def _read_rows(
    backbone: Backbone, clean: CleanRun, start: int, ids: Tensor, variants: Sequence[RowVariant]
) -> dict[str, Tensor]:
    """Run variants, and read the ids, (batch, k), and the argmax after what leaves the last layer.

    Returns:
        Field of `Readings` -> (batch, variants) or (batch, variants, k).
    """
    hidden = run_rows(decoder_layers(backbone), clean, start, variants)
    batch, count, _ = hidden.shape
    wanted = ids[:, None].expand(-1, count, -1).flatten(0, 1)
    size = head_states_at_once(backbone.lm_head)
    logprobs, tops = [], []
    for rows, chosen in zip(hidden.flatten(0, 1).split(size), wanted.split(size), strict=True):
        every = prompt_log_probabilities(next_token_head_logits(backbone, rows))
        logprobs.append(every.gather(1, chosen))
        tops.append(every.argmax(1))
    read = torch.cat(logprobs).view(batch, count, -1)
    top = torch.cat(tops).view(batch, count)
    return {
        "clean_logprobs": read[:, :1].expand_as(read[:, 1:]),
        "clean_top": top[:, :1].expand_as(top[:, 1:]),
        "logprobs": read[:, 1:],
        "top": top[:, 1:],
    }
