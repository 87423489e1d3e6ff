"""Dissecting a model: what blocking attention, or reading its layers, says about how it answers."""

from lightning_mllm.analysis.activated_weights import ActivatedWeights
from lightning_mllm.analysis.alignment import Alignment
from lightning_mllm.analysis.alignment_summary import Score, alignment_score
from lightning_mllm.analysis.answer_lens import AnswerLens
from lightning_mllm.analysis.base import Analysis, AnalysisResult
from lightning_mllm.analysis.blocks import Block, Window, Windows
from lightning_mllm.analysis.calibration import Calibration, Reading, calibrate
from lightning_mllm.analysis.computation_skipping import ComputationSkipping
from lightning_mllm.analysis.distinguishability import Distinguishability, TokenMap
from lightning_mllm.analysis.engine_choice import EngineName, choose_engine
from lightning_mllm.analysis.flow_summary import compare_flows
from lightning_mllm.analysis.information_flow import InformationFlow
from lightning_mllm.analysis.knockout import knockout
from lightning_mllm.analysis.knockout_engine import Case, KnockoutEngine, Readings
from lightning_mllm.analysis.pruned_accuracy import PrunedAccuracy
from lightning_mllm.analysis.pruning import Pruning
from lightning_mllm.analysis.reference_engine import ReferenceEngine
from lightning_mllm.analysis.skip import Skip
from lightning_mllm.analysis.skip_tokens import SampleTokens
from lightning_mllm.analysis.skipping import skipping
from lightning_mllm.analysis.subnetwork import SubNetwork, chance_iou, intersection, iou, pruned, same_size
from lightning_mllm.analysis.suffix_engine import SuffixEngine
from lightning_mllm.analysis.summaries import Bootstrap
from lightning_mllm.analysis.token_sets import TokenSets
from lightning_mllm.analysis.vocabulary import Vocabulary

__all__ = [
    "ActivatedWeights",
    "Alignment",
    "Analysis",
    "AnalysisResult",
    "AnswerLens",
    "Block",
    "Bootstrap",
    "Calibration",
    "Case",
    "ComputationSkipping",
    "Distinguishability",
    "EngineName",
    "InformationFlow",
    "KnockoutEngine",
    "PrunedAccuracy",
    "Pruning",
    "Reading",
    "Readings",
    "ReferenceEngine",
    "SampleTokens",
    "Score",
    "Skip",
    "SubNetwork",
    "SuffixEngine",
    "TokenMap",
    "TokenSets",
    "Vocabulary",
    "Window",
    "Windows",
    "alignment_score",
    "calibrate",
    "chance_iou",
    "choose_engine",
    "compare_flows",
    "intersection",
    "iou",
    "knockout",
    "pruned",
    "same_size",
    "skipping",
]
