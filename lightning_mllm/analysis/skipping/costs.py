"""What skipping saves in the LLM's pass over whole samples: operations and time.

Prompt and reference answer go through the decoder at once, so that both phases of a skip are in the
pass. Vision tower, projector and output head are left out. Operations are multiplications and
additions of all matrix products, including those of attention, as `torch.utils.flop_counter` counts
them while they are done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lightning_mllm.analysis.skipping.choice import SampleTokens
from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.analysis.skipping.skipping import skipped
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import Arguments, hook_before_call
from lightning_mllm.types import Table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecoderPassCosts:
    """The decoder's part of a pass, which can be repeated; the images are already encoded.

    What is added to the stream at images after the first layers (DeepStack) is left out.

    Attributes:
        embeddings: (batch, sequence, width), what enters the first layer.
        attention_mask: (batch, sequence), 1 at real tokens.
        position_ids: (batch, sequence), or (axes, batch, sequence).
        tokens: The prompts of the samples.
    """

    embeddings: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    tokens: SampleTokens

    @classmethod
    def of(cls, backbone: Backbone, batch: MultimodalBatch) -> DecoderPassCosts:
        """Record the decoder's part of a pass of the model over a batch."""
        seen: list[Arguments] = []
        with torch.no_grad(), hook_before_call(backbone.decoder, seen.append):
            backbone.model.model(**batch.model_inputs(), use_cache=False)
        return cls(
            seen[0]["inputs_embeds"],
            batch.attention_mask,
            batch.position_ids,
            SampleTokens.of(batch),
        )

    def alone(self, row: int) -> DecoderPassCosts:
        """Return the pass of one sample, without padding."""
        real = self.attention_mask[row].bool()
        return DecoderPassCosts(
            self.embeddings[row : row + 1, real],
            self.attention_mask[row : row + 1, real],
            self.position_ids[..., row : row + 1, :][..., real],
            self.tokens.take([row]),
        )

    @torch.no_grad()
    def run(self, backbone: Backbone) -> None:
        """Run the decoder once more."""
        backbone.decoder(
            inputs_embeds=self.embeddings,
            attention_mask=self.attention_mask,
            position_ids=self.position_ids,
            use_cache=False,
        )

    def flops(self, backbone: Backbone, skip: Skip | None = None) -> int:
        """Return the floating-point operations, without those that are skipped."""
        counter = FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)
        with self._skipped(backbone, skip), counter:
            self.run(backbone)
        return int(counter.get_total_flops())

    def seconds(
        self, backbone: Backbone, skips: Sequence[Skip | None], repetitions: int
    ) -> list[float]:
        """Return the median time of a pass with each skip.

        The skips take turns, after one round to warm up. An accelerator's work is waited for.
        """
        times: list[list[float]] = [[] for _ in skips]
        for repetition in range(1 + repetitions):
            for own, skip in zip(times, skips, strict=True):
                with self._skipped(backbone, skip):
                    _wait(self.embeddings.device)
                    started = time.perf_counter()
                    self.run(backbone)
                    _wait(self.embeddings.device)
                if repetition:
                    own.append(time.perf_counter() - started)
        return [median(own) for own in times]

    def _skipped(self, backbone: Backbone, skip: Skip | None) -> AbstractContextManager[None]:
        return nullcontext() if skip is None else skipped(backbone, self.tokens, skip)


def warn_of_no_costs_saved(name: str, skip: Skip, table: Table) -> None:
    """Warn of cases that should skip tokens of prompts, but skip none in any sample.

    They are found by their costs, which are those with nothing skipped.

    Args:
        name: Name of the analysis.
        skip: What its cases have in common.
        table: Rows of the cases, see `SkippingRow`.
    """
    if skip.phase == "decode":  # costs are of the reference answer, not of the generated one
        return
    due = (
        table["measured"]
        & (table["percent"] > 0)
        & ~np.char.startswith(table["computation"], "parallel")
    )
    rows: dict[tuple[str, int, float], list[int]] = {}
    for row in np.flatnonzero(due).tolist():
        case = (table["computation"][row], table["start"][row], table["percent"][row])
        rows.setdefault(case, []).append(row)
    for (computation, start, percent), own in rows.items():
        if (table["flops"][own] == table["flops_clean"][own]).all():
            logger.warning(
                "%s: %s from layer %d on is skipped for none of the %s tokens of %d samples: %g "
                "%% of them is less than one token.",
                *(name, computation, start, skip.tokens, len(own), percent),
            )


def _attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
) -> int:
    flops: int = sdpa_flop_count(query, key, value)
    return flops


# the CPU's kernel of attention, which torch 2.13 does not count
_UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


def _wait(device: torch.device) -> None:
    """Let an accelerator finish, so that the clock means something."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
