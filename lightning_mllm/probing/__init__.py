"""Independent probes: what can be read from features, layer by layer and epoch by epoch."""

from lightning_mllm.probing.drift import linear_cka, mean_cosine, relative_change
from lightning_mllm.probing.features.cache import FeatureCache
from lightning_mllm.probing.features.extraction import extract
from lightning_mllm.probing.features.feature_files import load_features, save_features
from lightning_mllm.probing.features.feature_set import FeatureSet
from lightning_mllm.probing.features.points import Point
from lightning_mllm.probing.features.states import SampleStates, extract_states
from lightning_mllm.probing.probes.baselines import NearestCentroid
from lightning_mllm.probing.probes.linear import LinearProbe
from lightning_mllm.probing.probes.mlp import MLPProbe
from lightning_mllm.probing.probes.probe import Probe
from lightning_mllm.probing.probes.scores import ProbeScore
from lightning_mllm.probing.probes.training import Training

__all__ = [
    "FeatureCache",
    "FeatureSet",
    "LinearProbe",
    "MLPProbe",
    "NearestCentroid",
    "Point",
    "Probe",
    "ProbeScore",
    "SampleStates",
    "Training",
    "extract",
    "extract_states",
    "linear_cka",
    "load_features",
    "mean_cosine",
    "relative_change",
    "save_features",
]
