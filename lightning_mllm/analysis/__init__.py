"""Dissecting a model: what blocking attention, or reading its layers, says about how it answers."""

from lightning_mllm.analysis.alignment.experiment import Alignment
from lightning_mllm.analysis.alignment.summary import AlignmentScore, alignment_score
from lightning_mllm.analysis.attention.pointing import AttentionPointing
from lightning_mllm.analysis.attention.shares import AttentionShares
from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.analysis.core.windows import Window, Windows
from lightning_mllm.analysis.dropping.drop import Drop
from lightning_mllm.analysis.dropping.dropping import dropping
from lightning_mllm.analysis.dropping.experiment import TokenDropping
from lightning_mllm.analysis.forward.sample_tokens import SampleTokens
from lightning_mllm.analysis.grounding.experiment import Grounding
from lightning_mllm.analysis.knockout.block import Block
from lightning_mllm.analysis.knockout.engine.base import Case, KnockoutEngine, Readings
from lightning_mllm.analysis.knockout.engine.reference import ReferenceEngine
from lightning_mllm.analysis.knockout.engine.suffix import EngineName, SuffixEngine, choose_engine
from lightning_mllm.analysis.knockout.experiment import InformationFlow
from lightning_mllm.analysis.knockout.mask import knockout
from lightning_mllm.analysis.knockout.summary import compare_flows
from lightning_mllm.analysis.lens.answer import AnswerLens
from lightning_mllm.analysis.lens.bank.bank import Bank
from lightning_mllm.analysis.lens.bank.building import build_bank
from lightning_mllm.analysis.lens.bank.options import BankOptions
from lightning_mllm.analysis.lens.patches.experiment import PatchWords
from lightning_mllm.analysis.lens.patches.reading import PatchReading, read_patch_words
from lightning_mllm.analysis.lens.vocabulary import Vocabulary
from lightning_mllm.analysis.modality_gap.experiment import MIR
from lightning_mllm.analysis.modality_gap.summary import ModalityGapScore, mir_score
from lightning_mllm.analysis.patching.edits import PatchCase
from lightning_mllm.analysis.patching.engine.base import PatchEngine, PatchReadings
from lightning_mllm.analysis.patching.engine.reference import ReferencePatching
from lightning_mllm.analysis.patching.engine.suffix import SuffixPatching, choose_patch_engine
from lightning_mllm.analysis.patching.experiment import ActivationPatching
from lightning_mllm.analysis.patching.patch import Patch, PatchKind
from lightning_mllm.analysis.patching.patching import patching
from lightning_mllm.analysis.patching.source import PatchSource
from lightning_mllm.analysis.picture_maps.experiment import PictureMaps
from lightning_mllm.analysis.separability.experiment import Distinguishability
from lightning_mllm.analysis.separability.token_map import TokenMap
from lightning_mllm.analysis.skipping.experiment import ComputationSkipping
from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.analysis.skipping.skipping import skipping
from lightning_mllm.analysis.steering.class_means import ClassMeans, shift_vector
from lightning_mllm.analysis.steering.experiment import SteeringSweep
from lightning_mllm.analysis.steering.mean_states import MeanStates
from lightning_mllm.analysis.steering.shift import ShiftSweep
from lightning_mllm.analysis.steering.steering import steering
from lightning_mllm.analysis.steering.vector import SteeringVector
from lightning_mllm.analysis.subnetwork.accuracy import PrunedAccuracy
from lightning_mllm.analysis.subnetwork.activated_weights import ActivatedWeights
from lightning_mllm.analysis.subnetwork.calibration import Calibration, calibrate
from lightning_mllm.analysis.subnetwork.calibration_options import CalibrationOptions
from lightning_mllm.analysis.subnetwork.overlap import chance_iou, iou
from lightning_mllm.analysis.subnetwork.pruned import pruned
from lightning_mllm.analysis.subnetwork.pruning import Pruning
from lightning_mllm.analysis.subnetwork.subnetwork import SubNetwork, intersection, same_size
from lightning_mllm.statistics.picture_bootstrap import Bootstrap

__all__ = [
    "MIR",
    "ActivatedWeights",
    "ActivationPatching",
    "Alignment",
    "AlignmentScore",
    "Analysis",
    "AnalysisResult",
    "AnswerLens",
    "AttentionPointing",
    "AttentionShares",
    "Bank",
    "BankOptions",
    "Block",
    "Bootstrap",
    "Calibration",
    "CalibrationOptions",
    "Case",
    "ClassMeans",
    "ComputationSkipping",
    "Distinguishability",
    "Drop",
    "EngineName",
    "Grounding",
    "InformationFlow",
    "KnockoutEngine",
    "MeanStates",
    "ModalityGapScore",
    "Patch",
    "PatchCase",
    "PatchEngine",
    "PatchKind",
    "PatchReading",
    "PatchReadings",
    "PatchSource",
    "PatchWords",
    "PictureMaps",
    "PrunedAccuracy",
    "Pruning",
    "Readings",
    "ReferenceEngine",
    "ReferencePatching",
    "SampleTokens",
    "ShiftSweep",
    "Skip",
    "SteeringSweep",
    "SteeringVector",
    "SubNetwork",
    "SuffixEngine",
    "SuffixPatching",
    "TokenDropping",
    "TokenMap",
    "TokenSets",
    "Vocabulary",
    "Window",
    "Windows",
    "alignment_score",
    "build_bank",
    "calibrate",
    "chance_iou",
    "choose_engine",
    "choose_patch_engine",
    "compare_flows",
    "dropping",
    "intersection",
    "iou",
    "knockout",
    "mir_score",
    "patching",
    "pruned",
    "read_patch_words",
    "same_size",
    "shift_vector",
    "skipping",
    "steering",
]
