"""The definition, computed only where a patch can make a difference.

In a causal decoder a patch changes nothing in the layers before its own, and no row before its
first position. So two clean runs, of which each is the other's source, serve all cases in both
directions: a case is the rows from its first position on, from its first layer on, which attend to
keys and values of the clean run. Where patched positions, and what is equal in both runs, form a
beginning of the prompt, as the whole image does, the rows of this beginning are the source's from
there on: its keys and values are taken, and only the rows behind it are computed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar, Literal
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from lightning_mllm.analysis.forward.out_of_memory import MemoryPieces
from lightning_mllm.analysis.forward.suffix.budget import BudgetPlan
from lightning_mllm.analysis.forward.suffix.clean_run import UnfitRunError
from lightning_mllm.analysis.forward.suffix.compatibility import (
    check_compatibility,
    check_edited_rows,
)
from lightning_mllm.analysis.patching.edits import PatchCase
from lightning_mllm.analysis.patching.engine.base import (
    PatchEngine,
    PatchReadings,
    PromptPair,
)
from lightning_mllm.analysis.patching.engine.reference import ReferencePatching
from lightning_mllm.analysis.patching.engine.rows import PatchedRows, RecordedRun, RowStart
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.free_memory import free_memory
from lightning_mllm.models.layers import attention_of_layers
from lightning_mllm.progress import show_progress

PatchEngineName = Literal["auto", "suffix", "reference"]

logger = logging.getLogger(__name__)


def choose_patch_engine(name: PatchEngineName = "auto", memory: int | None = None) -> PatchEngine:
    """Make an engine.

    Args:
        name: `reference` runs the whole model for each case. `suffix` computes only what can
            change; a model that does not allow this is refused. `auto` does the same, but leaves
            such a model to the reference engine, and logs a warning.
        memory: Bytes that the suffix engine may use besides the weights; by default half of what is
            free.
    """
    return ReferencePatching() if name == "reference" else SuffixPatching(memory, name == "suffix")


class SuffixPatching(PatchEngine):
    """Two clean passes, then only the rows that can change.

    Attributes:
        memory: Bytes that may be used besides the weights; None for half of what is free.
        strict: Whether a model that does not allow this is refused. Otherwise the reference engine
            does the work, and a warning says so.
    """

    name: ClassVar[str] = "suffix"

    def __init__(self, memory: int | None = None, strict: bool = False) -> None:
        if memory is not None and memory <= 0:
            raise ConfigError(
                f"A memory budget of {memory} bytes can't be kept. Give more, or None for what is "
                "free."
            )
        self.memory, self.strict = memory, strict
        self._reference = ReferencePatching()
        # model -> the attention that was checked, and whether single rows can be run
        self._fits: WeakKeyDictionary[nn.Module, tuple[str, bool]] = WeakKeyDictionary()
        self._pieces = MemoryPieces("patches")

    def check(self, backbone: Backbone, pair: PromptPair) -> None:
        """Try the rows' code on a prompt, once for each model and attention."""
        attention = attention_of_layers(backbone)
        if self._fits.get(backbone.model, ("", True))[0] == attention:
            return
        self._fits[backbone.model] = attention, True
        try:
            check_compatibility(backbone, pair.clean.take(range(1)))
            check_edited_rows(backbone, pair.clean.take(range(min(2, len(pair.clean)))))
        except UnfitRunError as error:
            self._give_way(backbone, error)

    def prompts_at_once(self, backbone: Backbone, pair: PromptPair) -> int:
        """Return how many pairs fit, each with two clean runs."""
        return max(1, self._plan(backbone, pair).prompts(2 * len(pair.clean)) // 2)

    def read(
        self, backbone: Backbone, pair: PromptPair, cases: Sequence[PatchCase], ids: Tensor
    ) -> PatchReadings:
        """Run all cases on these prompts, or leave them to the reference engine."""
        if not self._fits[backbone.model][1]:
            return self._reference.read(backbone, pair, cases, ids)
        try:
            return self._read_rows(backbone, pair, cases, ids)
        except UnfitRunError as error:  # prompts that are longer than a window, after shorter ones
            self._give_way(backbone, error)
            return self._reference.read(backbone, pair, cases, ids)

    def _read_rows(
        self, backbone: Backbone, pair: PromptPair, cases: Sequence[PatchCase], ids: Tensor
    ) -> PatchReadings:
        """Run two clean passes, then the rows."""
        runs = [
            RecordedRun.of(backbone, prompts, cases) for prompts in (pair.corrupted, pair.clean)
        ]
        positions, plan = pair.positions(cases), self._plan(backbone, pair)
        logits = [run.clean.logits for run in runs]
        readings = PatchReadings.unchanged(logits, ids, positions, self.name)
        with show_progress("Patches of a batch", 2 * len(cases)) as bar:
            for direction, (base, source) in enumerate((runs, runs[::-1])):
                rows = PatchedRows(backbone, base.clean, source, positions, cases)
                for key, group in rows.groups().items():

                    def read_some(
                        some: Sequence[int],
                        key: RowStart = key,
                        rows: PatchedRows = rows,
                        direction: int = direction,
                    ) -> None:
                        for numbers, found in rows.logits(key, some):
                            readings.put(direction, numbers, found, ids)
                        bar.advance(len(some))

                    size = plan.one_after_the_other(key.start, len(ids))
                    self._pieces.run(group, size, read_some, halve=len(ids) == 1)
        return readings

    def _plan(self, backbone: Backbone, pair: PromptPair) -> BudgetPlan:
        memory = self.memory or free_memory(backbone.model.device) // 2
        length = pair.clean.batch.input_ids.shape[1]
        return BudgetPlan.of(backbone.decoder.config, length, backbone.model.dtype, memory)

    def _give_way(self, backbone: Backbone, error: UnfitRunError) -> None:
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
        self._fits[backbone.model] = attention_of_layers(backbone), False
