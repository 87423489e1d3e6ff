"""Feature sets that tests draw: noisy samples around a centre per class."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_mllm.probing import FeatureSet


def clusters(
    split: str,
    *,
    sizes: Sequence[int] = (12, 12, 12, 12),
    width: int = 24,
    noise: float = 1.0,
    world: int = 0,
    dtype: torch.dtype = torch.float32,
) -> FeatureSet:
    """Draw `sizes[c]` samples of each class c; all splits of a world share its centres."""
    centres = torch.randn(
        len(sizes), width, generator=torch.Generator().manual_seed(world), dtype=torch.float64
    )
    targets = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    seed = 1000 * (world + 1) + sum(split.encode())
    draws = torch.randn(
        len(targets), width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return FeatureSet(
        features=(centres[targets] + noise * draws).to(dtype),
        targets=targets,
        names=tuple(f"class {number}" for number in range(len(sizes))),
        sample_ids=tuple(f"{split}/{number}" for number in range(len(targets))),
    )
