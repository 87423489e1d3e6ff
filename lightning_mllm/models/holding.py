"""How a model is held in memory: whole, quantised, sharded, or on several devices."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightning_mllm.models.placement import Placement
from lightning_mllm.models.quantization import QuantizationPlan
from lightning_mllm.models.sharding import Sharding


@dataclass(frozen=True)
class Holding:
    """How a model is held; by default whole, in the CPU's memory, from where it may be moved.

    Attributes:
        sharding: How it is divided among processes, all of which load it.
        placement: On which devices the layers of its LLM lie.
        quantization: What is quantised while the checkpoint is read.
        dequantize: Whether the weights of a checkpoint that is quantised become numbers again.
        device: Where quantised models are put.
    """

    sharding: Sharding | None = None
    placement: Placement | None = None
    quantization: QuantizationPlan | None = None
    dequantize: bool = False
    device: torch.device | str = "cpu"
