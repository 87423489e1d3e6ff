"""Perceptual and textual states by hand, and every measure by loops over tokens, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_mllm.analysis import AnalysisResult
from lightning_mllm.analysis.alignment.experiment import Alignment
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Segment

Tokens = np.ndarray[Any, np.dtype[np.float64]]  # (tokens, width)
Sample = list[tuple[Tokens, Tokens]]  # layer -> perceptual and textual tokens


@torch.no_grad()
def residuals(backbone: Backbone, batch: MultimodalBatch) -> list[Tensor]:
    """What enters each block and what leaves the last, un-normed, (batch, sequence, width) each."""
    last: list[Tensor] = []
    layers: Any = backbone.decoder.layers
    handle = layers[-1].register_forward_hook(lambda _, __, output: last.append(output))
    output = backbone.model(**batch.model_inputs(), output_hidden_states=True)
    handle.remove()
    return [*output.hidden_states[:-1], last[0]]


def places(batch: MultimodalBatch, row: int) -> tuple[list[int], list[int]]:
    """Where a sample's image tokens are, and the text behind them."""
    image = batch.spans[Segment.IMAGE][row].nonzero()[:, 0].tolist()
    real = batch.attention_mask[row].nonzero()[:, 0].tolist()
    return image, [place for place in real if place > image[0] and place not in image]


def samples_by_hand(backbone: Backbone, parts: Sequence[MultimodalBatch]) -> list[Sample]:
    found = []
    for batch in parts:
        states = [each.double().numpy() for each in residuals(backbone, batch)]
        for row in range(len(batch)):
            perceptual, textual = places(batch, row)
            found.append([(each[row][perceptual], each[row][textual]) for each in states])
    return found


def cosine(one: Tokens, other: Tokens) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def similarity(one: Tokens, other: Tokens, mode: str) -> float:
    if mode == "avg":
        return cosine(one.mean(0), other.mean(0))
    table = one @ other.T / np.outer(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))
    if mode == "max_mean":
        return float(table.max(1).mean())
    reductions: dict[str, Any] = {
        "mean": np.mean,
        "median": np.median,
        "max": np.max,
        "min": np.min,
    }
    return float(reductions[mode](table))


def over_pairs(
    ones: Sequence[Tokens], others: Sequence[Tokens], mode: str, own: bool
) -> list[float]:
    """Similarities of all pairs of samples, those of a sample with itself included or not."""
    pairs = product(enumerate(ones), enumerate(others))
    return [similarity(one, other, mode) for (i, one), (j, other) in pairs if own or i != j]


def align(backbone: Backbone, parts: Sequence[MultimodalBatch], **options: Any) -> AnalysisResult:
    """Run the analysis on batches of six samples, by default with all their pairs."""
    analysis = Alignment(**{"gaps": (1, 3), "pair_budget": 15, **options})
    for batch in parts:
        analysis.update(backbone, batch)
    return analysis.compute()


def curve(
    result: AnalysisResult, measure: str, state: str = "residual", tokens: str = "all"
) -> Tokens:
    return result.at(state=state, tokens=tokens, measure=measure, statistic="value")
