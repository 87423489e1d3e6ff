"""The prompts of a batch through the model, images encoded once; logits of LAST only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.analysis.forward.float32_head import head_in_float32
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.vision import EncodedImage


@dataclass(frozen=True)
class Prompts:
    """Prompts, padded on the left, so that LAST is the last column of each.

    Attributes:
        batch: Ends with LAST; on the model's device, without its pixels.
        images: What the LLM gets for each image.
    """

    batch: MultimodalBatch
    images: Sequence[EncodedImage]

    @classmethod
    def of(cls, backbone: Backbone, batch: MultimodalBatch) -> Prompts:
        """Cut the prompts out of a batch and encode its images."""
        images = backbone.encode_images(batch.images) if batch.images else []
        return cls(replace(batch, images=()).to(backbone.model.device).prompts(), images)

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.batch)

    def take(self, rows: Sequence[int]) -> Prompts:
        """Return a run of the prompts, padded as all are."""
        first = list(accumulate(self.batch.image_counts, initial=0))
        return Prompts(self.batch.take(rows), self.images[first[rows[0]] : first[rows[-1] + 1]])

    def forward(self, backbone: Backbone, use_cache: bool = False) -> tuple[Tensor, Any]:
        """Return the logits at LAST, (batch, vocabulary), of the head in float32, and the cache."""
        inputs = {**self.batch.model_inputs(), **backbone.vision_path.join(self.images)}
        with head_in_float32(backbone.lm_head):
            # not called: a call would run what torch.compile made of the model, without our hooks
            output = backbone.model.forward(**inputs, use_cache=use_cache, logits_to_keep=1)
        return output.logits[:, -1], output.past_key_values


def prompt_log_probabilities(logits: Tensor) -> Tensor:
    """Return the log-softmax in float32, or in float64 if the logits are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
