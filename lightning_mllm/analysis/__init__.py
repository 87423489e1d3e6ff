"""Dissecting a model: what blocking attention, or reading its layers, says about how it answers."""

from lightning_mllm.analysis.answer_lens import AnswerLens
from lightning_mllm.analysis.base import Analysis, AnalysisResult
from lightning_mllm.analysis.blocks import Block, Window, Windows
from lightning_mllm.analysis.computation_skipping import ComputationSkipping
from lightning_mllm.analysis.engine_choice import EngineName, choose_engine
from lightning_mllm.analysis.flow_summary import compare_flows
from lightning_mllm.analysis.information_flow import InformationFlow
from lightning_mllm.analysis.knockout import knockout
from lightning_mllm.analysis.knockout_engine import Case, KnockoutEngine, Readings
from lightning_mllm.analysis.reference_engine import ReferenceEngine
from lightning_mllm.analysis.skip import Skip
from lightning_mllm.analysis.skip_tokens import SampleTokens
from lightning_mllm.analysis.skipping import skipping
from lightning_mllm.analysis.suffix_engine import SuffixEngine
from lightning_mllm.analysis.summaries import Bootstrap

__all__ = [
    "Analysis",
    "AnalysisResult",
    "AnswerLens",
    "Block",
    "Bootstrap",
    "Case",
    "ComputationSkipping",
    "EngineName",
    "InformationFlow",
    "KnockoutEngine",
    "Readings",
    "ReferenceEngine",
    "SampleTokens",
    "Skip",
    "SuffixEngine",
    "Window",
    "Windows",
    "choose_engine",
    "compare_flows",
    "knockout",
    "skipping",
]
