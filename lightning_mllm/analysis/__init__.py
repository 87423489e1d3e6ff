"""Dissecting a model: what blocking attention, or reading its layers, says about how it answers."""

from lightning_mllm.analysis.blocks import Block, Window, Windows
from lightning_mllm.analysis.engine_choice import EngineName, choose_engine
from lightning_mllm.analysis.knockout import knockout
from lightning_mllm.analysis.knockout_engine import Case, KnockoutEngine, Readings
from lightning_mllm.analysis.reference_engine import ReferenceEngine
from lightning_mllm.analysis.suffix_engine import SuffixEngine

__all__ = [
    "Block",
    "Case",
    "EngineName",
    "KnockoutEngine",
    "Readings",
    "ReferenceEngine",
    "SuffixEngine",
    "Window",
    "Windows",
    "choose_engine",
    "knockout",
]
