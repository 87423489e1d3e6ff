"""Checkpoints of which nothing matters but their files."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_checkpoint(folder: Path, last: float, size: int = 400_000) -> Path:
    """Write a checkpoint of more than a megabyte whose second tensor is full of one number."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    weights = folder / "model.safetensors"
    save_file({"a": torch.zeros(size), "b": torch.full((300,), last)}, weights)
    os.utime(weights, (last, last))  # two writes may be within one tick of the clock
    return folder
