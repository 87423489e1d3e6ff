"""Checkpoints that are read once per process; whoever asks again gets a copy, or the same."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

from lightning_mllm.data import load_processor
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.models.backbone import Backbone


def load_copy(checkpoint: str, **options: Any) -> Backbone:
    """Return what `Backbone.from_pretrained` does; a test may change it.

    For checkpoints that nobody writes to in the meantime.
    """
    if "holding" in options:  # hooks that move weights belong to one model
        return Backbone.from_pretrained(checkpoint, **options)
    return copy.deepcopy(_load(checkpoint, **options))


@lru_cache(maxsize=8)
def _load(checkpoint: str, **options: Any) -> Backbone:
    return Backbone.from_pretrained(checkpoint, **options)


@lru_cache(maxsize=8)
def read_processor(checkpoint: str) -> CheckpointProcessor:
    """Return what `load_processor` does; all tests share it, and none may change it."""
    return load_processor(checkpoint)
