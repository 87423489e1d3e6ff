"""Independent probes: what can be read from features, layer by layer and epoch by epoch."""

from lightning_mllm.probing.change.measures import ProjectionChanges, measure_change
from lightning_mllm.probing.change.neighbours import neighbour_overlap
from lightning_mllm.probing.change.reconstruction import reconstruct_patches
from lightning_mllm.probing.drift import linear_cka, mean_cosine, relative_change
from lightning_mllm.probing.features.cache import FeatureCache
from lightning_mllm.probing.features.extraction import extract, extract_samples
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
    "ProjectionChanges",
    "SampleStates",
    "Training",
    "extract",
    "extract_samples",
    "extract_states",
    "linear_cka",
    "load_features",
    "mean_cosine",
    "measure_change",
    "neighbour_overlap",
    "reconstruct_patches",
    "relative_change",
    "save_features",
]
