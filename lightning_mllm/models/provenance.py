"""Says which weights and which samples a finding is about, so that findings are not mixed up."""

from __future__ import annotations

from typing import Any

from lightning_mllm.models.backbone import fingerprint_backbone
from lightning_mllm.models.checkpoint import describe_quantization
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.store.manifest import manifest_digest
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
        "weights": fingerprint_backbone(module.backbone.model),
        "dtype": str(module.adapted.dtype).removeprefix("torch."),
        **describe_quantization(module.backbone),
        "attention": module.attention,
        "data": type(data).__name__,
        "split": split,
        "samples": len(data.samples[split]),
        "contents": manifest_digest(map(_describe, data.samples[split])),
        "prompt": repr(data.eval_collator.prompt),
        "geometry": str(data.eval_collator.geometry),
        "max_length": data.eval_collator.max_length,
    }


def _describe(sample: Sample) -> str:
    """Return all that a sample says; of its images only the number, as files can be elsewhere."""
    said = (
        sample.id,
        sample.label,
        tuple(sample.conversation),
        sample.system,
        sample.kind,
        len(sample.images),
    )
    return repr((*said, tuple(sample.boxes), sample.options, sample.picture))
