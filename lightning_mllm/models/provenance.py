"""Says which weights and which samples a finding is about, so that findings are not mixed up."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from lightning_mllm.models.backbone import fingerprint
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.types import Sample


def provenance(module: MLLMModule, data: Any, split: str) -> dict[str, Any]:
    """Return what determines the findings on a split, as plain data.

    Args:
        module: The model with its current weights.
        data: The DataModule, set up.
        split: Name of the split.
    """
    return {
        "checkpoint": module.source.checkpoint,
        "trained_steps": module.trained_steps,
        "weights": fingerprint(module.backbone.model),
        "dtype": str(module.adapted.dtype).removeprefix("torch."),
        "attention": module.attention,
        "data": type(data).__name__,
        "split": split,
        "samples": len(data.samples[split]),
        "contents": _digest(data.samples[split]),
        "prompt": repr(data.eval_collator.prompt),
        "geometry": str(data.eval_collator.geometry),
        "max_length": data.eval_collator.max_length,
    }


def _digest(samples: Iterable[Sample]) -> str:
    """Return a hash of all that samples say; images count by their number alone, for files can be elsewhere."""
    digest = hashlib.sha256()
    for sample in samples:
        said = (sample.id, sample.label, tuple(sample.conversation), sample.system, sample.kind, len(sample.images))
        digest.update(repr((*said, tuple(sample.boxes), sample.options, sample.picture)).encode())
    return digest.hexdigest()[:16]
