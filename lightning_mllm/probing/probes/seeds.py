"""What a probe's seed decides: the held-out slice, the order of the samples, the shuffled labels."""

from __future__ import annotations

import random

import torch
from torch import Tensor


def seeded(seed: int, purpose: str) -> torch.Generator:
    """Return a generator for one purpose, so that none shifts the numbers of another."""
    return torch.Generator().manual_seed(random.Random(f"{seed}/{purpose}").getrandbits(63))


def hold_out(targets: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split samples in two, class by class.

    Each class holds out the rounded fraction of its samples, at least one, and keeps at least one:
    the only sample of a class is never held out. How many are held out depends only on the sizes of
    the classes.

    Args:
        targets: (samples,) class indices.
        fraction: Share of each class to hold out; at 0 nothing is held out.
        generator: Draws which samples are held out.

    Returns:
        The rows that stay and the rows held out, each in ascending order.
    """
    held = torch.zeros(len(targets), dtype=torch.bool)
    for target in targets.unique() if fraction else ():
        rows = (targets == target).nonzero().flatten()
        size = min(len(rows) - 1, max(1, round(fraction * len(rows))))
        held[rows[torch.randperm(len(rows), generator=generator)[:size]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()
