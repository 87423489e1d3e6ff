"""Features of a split at several points of the model, in one pass: pooled at once, so memory does not grow with tokens.

Without an LLM point only tower and projector run. With a cache the tower runs once per image, ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_mllm.errors import DataError, UserError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.probing.features.cache import FeatureCache
from lightning_mllm.probing.features.feature_set import FeatureSet
from lightning_mllm.probing.features.points import Point
from lightning_mllm.probing.features.tapping import TappedBatch, Tapper
from lightning_mllm.types import MultimodalBatch


@torch.no_grad()
def extract(
    backbone: Backbone,
    batches: Iterable[MultimodalBatch],
    points: Sequence[Point],
    names: Sequence[str],
    *,
    cache: FeatureCache | None = None,
) -> dict[str, FeatureSet]:
    """Tap all points in one pass, in eval mode; autocast is the caller's.

    Without a cache "post" is, before pooling, bit for bit what the model feeds its LLM. With one, the tower runs on one
    image at a time and its features are rounded to the cache's dtype, whether they come from the cache or not: so
    results do not depend on what the cache holds.

    Where processes share the data, each calls this with its batches, and all get the features of all. Samples stand in
    the order of the batches (the first of each process, then the second of each, ...: with the evaluation loaders of a
    DataModule the order of the split), and each counts once.

    Args:
        backbone: The model.
        batches: Of samples with images and targets; on any device, best the CPU (see `Tapper.tap`).
        points: What is tapped.
        names: Class names.
        cache: For a frozen tower.

    Returns:
        Point's name -> features, float32.

    Raises:
        ConfigError: A point does not exist in this model, or the tower is trained and there is a cache.
        DataError: A sample has no image or no class, or a feature is not finite.
    """
    share: list[TappedBatch] | UserError
    try:
        with _evaluating(backbone.model):
            tapper = Tapper(backbone, points, cache)
            share = _kept(tapper.tap(batch) for batch in batches)
    except UserError as error:  # goes to the other processes too, which would wait for ever
        share = error
    return _merge(_of_all_processes(share), names)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _kept(batches: Iterable[TappedBatch]) -> list[TappedBatch]:
    """Return the features of all batches as parts of one tensor per point.

    Kept as they come, small tensors between the large ones of each batch, they would leave holes in the heap.
    """
    stacks: dict[str, Tensor] = {}
    found: list[tuple[TappedBatch, int]] = []  # a batch without its vectors, and where they end
    end = 0
    for rows in batches:
        start, end = end, end + len(rows.sample_ids)
        for point, vectors in rows.vectors.items():
            stack = stacks.get(point, vectors[:0])
            if len(stack) < end:
                stack = torch.cat([stack[:start], vectors.new_empty(2 * end - start, vectors.shape[1])])
            stack[start:end] = vectors
            stacks[point] = stack
        found.append((replace(rows, vectors={}), end))
    return [
        replace(rows, vectors={point: stack[end - len(rows.sample_ids) : end] for point, stack in stacks.items()})
        for rows, end in found
    ]


def _of_all_processes(share: list[TappedBatch] | UserError) -> list[TappedBatch]:
    """Return the batches of all processes, the first of each, then the second of each; or raise what one raised."""
    shares: list[list[TappedBatch] | UserError] = [share]
    if dist.is_available() and dist.is_initialized():
        shares = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(shares, share if isinstance(share, UserError) else _alone(share))
    for each in shares:
        if isinstance(each, UserError):
            raise each
    batches = cast(list[list[TappedBatch]], shares)
    return [rows for turn in zip_longest(*batches) for rows in turn if rows is not None]


def _alone(share: list[TappedBatch]) -> list[TappedBatch]:
    """Return the batches with tensors of their own: a part of a tensor would be sent with the whole of it."""
    return [replace(rows, vectors={point: part.clone() for point, part in rows.vectors.items()}) for rows in share]


def _merge(batches: Sequence[TappedBatch], names: Sequence[str]) -> dict[str, FeatureSet]:
    """Return the features of all samples, each once."""
    if not batches:
        raise DataError("There are no features: no sample was extracted. Check that the split is not empty.")
    sample_ids = [sample_id for rows in batches for sample_id in rows.sample_ids]
    first = {sample_id: row for row, sample_id in reversed(list(enumerate(sample_ids)))}
    kept = sorted(first.values())

    def joined(parts: Iterable[Tensor]) -> Tensor:
        whole = torch.cat(list(parts))
        return whole if len(kept) == len(sample_ids) else whole[kept]

    targets = joined(rows.targets for rows in batches)
    return {
        point: FeatureSet(
            features=joined(rows.vectors[point] for rows in batches),
            targets=targets,
            names=tuple(names),
            sample_ids=tuple(sample_ids[row] for row in kept),
        )
        for point in batches[0].vectors
    }
