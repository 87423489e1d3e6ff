"""What a model does to the logits of its output embedding before it returns them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from lightning_mllm.families.registry import family_of


def finish_logits(config: PretrainedConfig, logits: Tensor) -> Tensor:
    """Return logits as the model's own forward does: soft-capped or scaled, if its family says so.

    Args:
        config: The model's config.
        logits: What the output embedding returns, (..., vocabulary).
    """
    text_config: Any = config.get_text_config()
    head = family_of(config).head
    if head == "scaled":
        scaling: float = text_config.logits_scaling
        return logits / scaling
    cap: float | None = getattr(text_config, "final_logit_softcapping", None)
    if head == "plain" or cap is None:
        return logits
    return torch.tanh(logits / cap) * cap
