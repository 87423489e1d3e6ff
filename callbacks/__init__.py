"""Decide when measurements are made during a run. Imported as `lightning_mllm.callbacks`."""

if __name__ != "lightning_mllm.callbacks":
    raise ImportError(
        f"Import these callbacks as lightning_mllm.callbacks, not as {__name__}: under two names "
        "each class would exist twice."
    )

from lightning_mllm.callbacks.alignment import AlignmentMonitor
from lightning_mllm.callbacks.answers import AnswerTable
from lightning_mllm.callbacks.chair import ChairReport
from lightning_mllm.callbacks.checkpointing import Checkpointing
from lightning_mllm.callbacks.clip import ClipZeroShot
from lightning_mllm.callbacks.defaults import default_callbacks
from lightning_mllm.callbacks.drift import RepresentationDrift
from lightning_mllm.callbacks.epoch_line import EpochLine
from lightning_mllm.callbacks.evaluation_report import EvaluationReport
from lightning_mllm.callbacks.evaluation_summary import EvaluationSummary
from lightning_mllm.callbacks.freeze_audit import FreezeAudit
from lightning_mllm.callbacks.learning_audit import LearningAudit
from lightning_mllm.callbacks.learning_curve import LearningCurve
from lightning_mllm.callbacks.learning_rate_log import LearningRateLog
from lightning_mllm.callbacks.log_interval import LogInterval
from lightning_mllm.callbacks.pope import PopeReport
from lightning_mllm.callbacks.predictions import PredictionTable
from lightning_mllm.callbacks.probe import ProbeEachEpoch
from lightning_mllm.callbacks.projection_change import ProjectionChange
from lightning_mllm.callbacks.run_analysis import RunAnalysis
from lightning_mllm.callbacks.save_features import SaveFeatures
from lightning_mllm.callbacks.skipping import SkipComputations
from lightning_mllm.callbacks.throughput import Throughput
from lightning_mllm.callbacks.training_bar import TrainingBar

__all__ = [
    "AlignmentMonitor",
    "AnswerTable",
    "ChairReport",
    "Checkpointing",
    "ClipZeroShot",
    "EpochLine",
    "EvaluationReport",
    "EvaluationSummary",
    "FreezeAudit",
    "LearningAudit",
    "LearningCurve",
    "LearningRateLog",
    "LogInterval",
    "PopeReport",
    "PredictionTable",
    "ProbeEachEpoch",
    "ProjectionChange",
    "RepresentationDrift",
    "RunAnalysis",
    "SaveFeatures",
    "SkipComputations",
    "Throughput",
    "TrainingBar",
    "default_callbacks",
]
