"""Dissecting a model: what blocking attention, or reading its layers, says about how it answers."""

from lightning_mllm.analysis.answer_lens import AnswerLens
from lightning_mllm.analysis.base import Analysis, AnalysisResult
from lightning_mllm.analysis.blocks import Block, Window, Windows
from lightning_mllm.analysis.engine_choice import EngineName, choose_engine
from lightning_mllm.analysis.flow_summary import compare_flows
from lightning_mllm.analysis.information_flow import InformationFlow
from lightning_mllm.analysis.knockout import knockout
from lightning_mllm.analysis.knockout_engine import Case, KnockoutEngine, Readings
from lightning_mllm.analysis.reference_engine import ReferenceEngine
from lightning_mllm.analysis.suffix_engine import SuffixEngine
from lightning_mllm.analysis.summaries import Bootstrap

__all__ = [
    "Analysis",
    "AnalysisResult",
    "AnswerLens",
    "Block",
    "Bootstrap",
    "Case",
    "EngineName",
    "InformationFlow",
    "KnockoutEngine",
    "Readings",
    "ReferenceEngine",
    "SuffixEngine",
    "Window",
    "Windows",
    "choose_engine",
    "compare_flows",
    "knockout",
]
