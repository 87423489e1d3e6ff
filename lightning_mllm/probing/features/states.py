"""The states of single samples at points of a model, with what each of their rows is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.probing.features.extraction import evaluating
from lightning_mllm.probing.features.points import IN_LLM, Point
from lightning_mllm.probing.features.reading import PointReader, point_positions
from lightning_mllm.types import Segment

Runs = list[list[int]]  # [from, up to] of rows that follow each other


@dataclass(frozen=True)
class SampleStates:
    """What was read of one sample at one point.

    Attributes:
        sample_id: Id of the sample.
        point: The point.
        states: (rows, width), on the CPU: one row where tokens were pooled, else a row per token.
        spans: Segment -> which rows it has, where they are tokens of the LLM.
        images: (views, tokens) of each image whose tokens have rows, in their order.
        token_ids: (rows,), where they are tokens of the LLM; None elsewhere.
    """

    sample_id: str
    point: Point
    states: Tensor
    spans: Mapping[Segment, Runs] = field(default_factory=dict)
    images: Sequence[tuple[int, int]] = ()
    token_ids: Tensor | None = None


@torch.no_grad()
def extract_states(
    backbone: Backbone, batches: Iterable[MultimodalBatch], points: Sequence[Point]
) -> Iterator[SampleStates]:
    """Yield the states of each sample at each point, in eval mode, under the caller's autocast.

    Pooled states are float32, those of tokens as the model computes them. They are those that
    `extract` returns and `lightning extract` writes.

    Args:
        backbone: The model.
        batches: Batches of samples, e.g. `data.plain_dataloader("test")`.
        points: Where states are read.

    Raises:
        ConfigError: A point does not exist in this model.
        DataError: A sample has no image, and a point is about images.
    """
    with evaluating(backbone.model):
        reader = PointReader(backbone, points)
        for batch in batches:
            yield from read_states(reader, batch, points)


def read_states(
    reader: PointReader, batch: MultimodalBatch, points: Sequence[Point]
) -> Iterator[SampleStates]:
    """Yield the states of the samples of one batch, sample by sample, point by point.

    Args:
        reader: What reads the points.
        batch: Samples, on any device.
        points: The points that the reader was made for.
    """
    found = reader.read(batch)
    batch = batch.to("cpu")
    for row, sample_id in enumerate(batch.sample_ids):
        for point in points:
            states = found[point.name]
            own = states.samples[row].cpu()
            if point.place not in IN_LLM or (point.pooling != "none" and point.place != "last"):
                yield SampleStates(sample_id, point, own, images=states.images[row])
                continue
            kept = point_positions(batch, point.place)[row]
            spans = {} if point.place == "last" else _find_spans(batch, row, kept)
            ids = batch.input_ids[row][kept]
            yield SampleStates(sample_id, point, own, spans, states.images[row], ids)


def _find_spans(batch: MultimodalBatch, row: int, kept: Tensor) -> dict[Segment, Runs]:
    """Return which of the kept positions of a sample each segment has."""
    spans = {}
    for segment, masks in batch.spans.masks.items():
        if runs := _find_runs(masks[row][kept]):
            spans[segment] = runs
    return spans


def _find_runs(mask: Tensor) -> Runs:
    """Return where a mask is True: [from, up to] of each run."""
    edges = torch.diff(mask.int(), prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1))
    starts, ends = (edges > 0).nonzero().flatten(), (edges < 0).nonzero().flatten()
    return torch.stack([starts, ends], dim=1).tolist()
