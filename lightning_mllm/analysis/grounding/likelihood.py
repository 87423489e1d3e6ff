"""The log-likelihood of each sample's answer, image features given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_mllm.analysis.forward.float32_head import head_states_at_once, model_logits
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import run_layers_uncompiled
from lightning_mllm.models.vision import EncodedImage
from lightning_mllm.types import IGNORE_INDEX


def answer_log_likelihoods(
    backbone: Backbone, batch: MultimodalBatch, images: Sequence[EncodedImage]
) -> Tensor:
    """Return the log-probability of all answer tokens of each sample, ends included, in nats.

    Summed over a batch it is minus `AnswerLoss.total`, but for the rounding of a head that is not
    in float32.

    Args:
        backbone: The model.
        batch: Prompts and answers, on the model's device, without pixels.
        images: What the LLM gets for each image, on that device.

    Returns:
        (batch,) float64, on the CPU.

    Raises:
        NotFiniteError: One is NaN or infinite.
    """
    hidden = run_layers_uncompiled(backbone, batch, images).last_hidden_state
    next_tokens = batch.labels[:, 1:]
    carries_loss = next_tokens != IGNORE_INDEX
    states, expected = hidden[:, :-1][carries_loss], next_tokens[carries_loss]
    size = head_states_at_once(backbone.lm_head)
    found = []
    for some, tokens in zip(states.split(size), expected.split(size), strict=True):
        logits = model_logits(backbone, some)
        chosen = logits.gather(1, tokens[:, None])[:, 0]
        found.append((chosen - logits.logsumexp(dim=1)).double().cpu())
    samples = carries_loss.nonzero()[:, 0].cpu()
    totals = torch.zeros(len(batch), dtype=torch.float64)
    totals.index_add_(0, samples, torch.cat(found))
    check_finite(totals, batch.sample_ids, "The log-likelihoods of answers")
    return totals


def count_answer_tokens(batch: MultimodalBatch) -> list[int]:
    """Return how many tokens of each sample carry loss."""
    counts: list[int] = (batch.labels != IGNORE_INDEX).sum(dim=1).tolist()
    return counts
