"""What an edit of the model saves in the LLM's pass over whole samples: operations and time.

Prompt and reference answer go through the decoder at once. Vision tower, projector and output head
are left out. Operations are multiplications and additions of all matrix products, including those
of attention, as `torch.utils.flop_counter` counts them while they are done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lightning_mllm.analysis.forward.sample_tokens import SampleTokens
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import Arguments, hook_before_call

EditT = TypeVar("EditT")


@dataclass(frozen=True)
class DecoderPassCosts(Generic[EditT]):
    """The decoder's part of a pass, which can be repeated; the images are already encoded.

    What is added to the stream at images after the first layers (DeepStack) is left out.

    Attributes:
        embeddings: (batch, sequence, width), what enters the first layer.
        attention_mask: (batch, sequence), 1 at real tokens.
        position_ids: (batch, sequence), or (axes, batch, sequence).
        tokens: The prompts of the samples.
        apply: The `with` block that edits the model for these samples.
    """

    embeddings: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    tokens: SampleTokens
    apply: Callable[[Backbone, SampleTokens, EditT], AbstractContextManager[None]]

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        batch: MultimodalBatch,
        apply: Callable[[Backbone, SampleTokens, EditT], AbstractContextManager[None]],
    ) -> DecoderPassCosts[EditT]:
        """Record the decoder's part of a pass of the model over a batch."""
        seen: list[Arguments] = []
        with torch.no_grad(), hook_before_call(backbone.decoder, seen.append):
            backbone.model.model(**batch.model_inputs(), use_cache=False)
        return cls(
            seen[0]["inputs_embeds"],
            batch.attention_mask,
            batch.position_ids,
            SampleTokens.of(batch),
            apply,
        )

    def alone(self, row: int) -> DecoderPassCosts[EditT]:
        """Return the pass of one sample, without padding."""
        real = self.attention_mask[row].bool()
        return DecoderPassCosts(
            self.embeddings[row : row + 1, real],
            self.attention_mask[row : row + 1, real],
            self.position_ids[..., row : row + 1, :][..., real],
            self.tokens.take([row]),
            self.apply,
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

    def flops(self, backbone: Backbone, edit: EditT | None = None) -> int:
        """Return the floating-point operations, without those that an edit saves."""
        counter = FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)
        with self._edited(backbone, edit), counter:
            self.run(backbone)
        return int(counter.get_total_flops())

    def seconds(
        self, backbone: Backbone, edits: Sequence[EditT | None], repetitions: int
    ) -> list[float]:
        """Return the median time of a pass with each edit.

        The edits take turns, after one round to warm up. An accelerator's work is waited for.
        """
        times: list[list[float]] = [[] for _ in edits]
        for repetition in range(1 + repetitions):
            for own, edit in zip(times, edits, strict=True):
                with self._edited(backbone, edit):
                    _wait(self.embeddings.device)
                    started = time.perf_counter()
                    self.run(backbone)
                    _wait(self.embeddings.device)
                if repetition:
                    own.append(time.perf_counter() - started)
        return [median(own) for own in times]

    def _edited(self, backbone: Backbone, edit: EditT | None) -> AbstractContextManager[None]:
        return nullcontext() if edit is None else self.apply(backbone, self.tokens, edit)


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
