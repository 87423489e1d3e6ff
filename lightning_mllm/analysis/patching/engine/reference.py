"""The definition, run as it stands: for each case a full forward, with its patch hooked in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from lightning_mllm.analysis.patching.edits import PatchCase, PatchEdit
from lightning_mllm.analysis.patching.engine.base import (
    PatchEngine,
    PatchReadings,
    PromptPair,
    find_patch_kinds,
)
from lightning_mllm.analysis.patching.patching import patch_states
from lightning_mllm.analysis.patching.source import PatchSource, count_heads, record_states
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.progress import show_progress


class ReferencePatching(PatchEngine):
    """One forward per case and direction, images encoded once."""

    name: ClassVar[str] = "reference"

    def read(
        self, backbone: Backbone, pair: PromptPair, cases: Sequence[PatchCase], ids: Tensor
    ) -> PatchReadings:
        """Run all cases on these prompts, one after the other."""
        kinds, positions = find_patch_kinds(cases), pair.positions(cases)
        sources = []
        for prompts in (pair.corrupted, pair.clean):
            with record_states(backbone, kinds) as states:
                logits, _ = prompts.forward(backbone)
            sources.append(PatchSource(prompts.batch, states, logits))
        own = [source.logits for source in sources]
        readings = PatchReadings.unchanged(own, ids, positions, self.name)
        heads = count_heads(backbone)
        with show_progress("Patches of a batch", 2 * len(cases)) as bar:
            for direction, (base, _) in enumerate(pair.directions):
                for number, (case, mask) in enumerate(zip(cases, positions, strict=True)):
                    edit = PatchEdit(case, mask, sources[1 - direction], heads)
                    with patch_states(backbone, [edit]):
                        patched, _ = base.forward(backbone)
                    readings.put(direction, [number], patched[None], ids)
                    bar.advance(1)
        return readings
