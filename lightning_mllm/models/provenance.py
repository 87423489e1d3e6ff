"""Which weights and which samples a finding is about, so that nothing is mixed up with that of others."""

from __future__ import annotations

import hashlib
from typing import Any

from lightning_mllm.models.backbone import fingerprint
from lightning_mllm.models.module import MLLMModule


def provenance(module: MLLMModule, data: Any, split: str) -> dict[str, Any]:
    """Return what decides the findings on a split, as plain data.

    Args:
        module: The model, with the weights that it is looked at with.
        data: The DataModule.
        split: The split, set up.
    """
    ids = [sample.id for sample in data.samples[split]]
    return {
        "checkpoint": module.source.checkpoint,
        "trained_steps": module.trained_steps,
        "weights": fingerprint(module.backbone.model),
        "dtype": str(module.adapted.dtype).removeprefix("torch."),
        "attention": module.attention,
        "data": type(data).__name__,
        "split": split,
        "samples": len(ids),
        "sample_ids": hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16],
        "prompt": repr(data.eval_collator.prompt),
        "geometry": str(data.eval_collator.geometry),
        "max_length": data.eval_collator.max_length,
    }
