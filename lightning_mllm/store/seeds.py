"""Random numbers seeded by name: each choice has its own stream and shifts no other's numbers.

A name is words and numbers, such as ("scene", seed, split, index). The same name gives the same
numbers in every process and on every platform. Files hold what was drawn, so no number here may
ever change.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from hashlib import blake2b
from zlib import crc32

import numpy as np
import torch


def python_random(*name: object) -> random.Random:
    """Return a generator of Python, which text seeds through SHA-512, not through `hash`."""
    return random.Random("/".join(map(str, name)))


def seed_of(*name: object) -> int:
    """Return a seed of 63 bits, e.g. for `torch.manual_seed`."""
    return python_random(*name).getrandbits(63)


def torch_generator(*name: object) -> torch.Generator:
    """Return a generator of PyTorch, on the CPU."""
    return torch.Generator().manual_seed(seed_of(*name))


def numpy_generator(seed: int, name: str) -> np.random.Generator:
    """Return a generator of NumPy."""
    return np.random.default_rng([seed, crc32(name.encode())])


def seed_number_of(name: str, *, signed: bool = False) -> int:
    """Return a number of 64 bits that stands for a name and looks random."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=signed)


def seed_rank_of(name: str, seed: int) -> int:
    """Return a number of 64 bits that depends on name and seed alone; sorting by it is a draw."""
    return seed_number_of(f"{seed}/{name}")


def draw_by_seed(names: Iterable[str], size: int, seed: int) -> set[str]:
    """Draw some of the names: those with the lowest ranks.

    A name that is drawn from many is also drawn from fewer, so that names can come one by one.
    """
    return set(sorted(names, key=lambda name: seed_rank_of(name, seed))[:size])
