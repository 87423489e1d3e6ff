"""Extracts the features of a split at several points of the model, in one pass.

They are pooled batch by batch, so memory does not grow with the number of tokens. Without a point
in the LLM only tower and projector run. With a cache the tower runs once per image, ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import DataError, UserError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.probing.change.reconstruction import PicturePatches
from lightning_mllm.probing.features.cache import FeatureCache
from lightning_mllm.probing.features.feature_set import FeatureSet
from lightning_mllm.probing.features.points import Point
from lightning_mllm.probing.features.tapping import TappedBatch, Tapper


@dataclass(frozen=True, eq=False, repr=False)
class ExtractedSamples:
    """What was read of the samples of a split, each once.

    Attributes:
        sample_ids: Id of each sample.
        targets: (samples,) class indices, -1 where a sample has none.
        vectors: Point's name -> (samples, width), float32.
        patches: Some patches of each picture, if they were asked for.
    """

    sample_ids: tuple[str, ...]
    targets: Tensor
    vectors: Mapping[str, Tensor]
    patches: tuple[PicturePatches, ...] = ()

    def at(self, points: Iterable[str]) -> ExtractedSamples:
        """Return what was read at some points, by their names."""
        return replace(self, vectors={point: self.vectors[point] for point in points})

    def label(self, names: Sequence[str], targets: Tensor | None = None) -> dict[str, FeatureSet]:
        """Return point's name -> the features with classes.

        Args:
            names: Class names.
            targets: (samples,) class indices, in place of those of the samples' labels.

        Raises:
            DataError: A sample has no class.
            NotFiniteError: A feature is NaN or infinite.
        """
        if targets is None and (self.targets < 0).any():
            sample_id = self.sample_ids[int((self.targets < 0).int().argmax())]
            raise DataError(f"Sample {sample_id!r} has no class. Probes need data with labels.")
        sets: dict[str, FeatureSet] = {}
        for point, vectors in self.vectors.items():
            sets[point] = FeatureSet(
                features=vectors,
                targets=self.targets if targets is None else targets,
                names=tuple(names),
                sample_ids=self.sample_ids,
            )
        return sets


def extract(
    backbone: Backbone,
    batches: Iterable[MultimodalBatch],
    points: Sequence[Point],
    names: Sequence[str],
    *,
    cache: FeatureCache | None = None,
    running: AbstractContextManager[None] | None = None,
) -> dict[str, FeatureSet]:
    """Tap all points in one pass, with the class of each sample; see `extract_samples`.

    Args:
        backbone: The model.
        batches: Samples with images and targets; on any device, best the CPU (see `Tapper.tap`).
        points: Where features are tapped.
        names: Class names.
        cache: Where features of the tower are kept; for a frozen tower only.
        running: Context in which the model runs, instead of the caller's autocast.

    Returns:
        Point's name -> features, float32.

    Raises:
        ConfigError: A point does not exist in this model, or the tower is trained and there is a
            cache.
        DataError: There is no sample, or one has no image or no class.
        NotFiniteError: A feature is NaN or infinite.
    """
    found = extract_samples(backbone, batches, points, cache=cache, running=running)
    return found.label(names)


@torch.no_grad()
def extract_samples(
    backbone: Backbone,
    batches: Iterable[MultimodalBatch],
    points: Sequence[Point],
    *,
    cache: FeatureCache | None = None,
    running: AbstractContextManager[None] | None = None,
    patches: int = 0,
) -> ExtractedSamples:
    """Tap all points in one pass, in eval mode, under the caller's autocast.

    Without a cache "post" is, before pooling, bit for bit what the model feeds its LLM. With a
    cache the tower runs on one image at a time and its features are rounded to the cache's dtype,
    whether they come from the cache or not. So results do not depend on what the cache holds.

    Where processes share the data, each calls this with its own batches, and all get the features
    of all. Samples come in the order of the batches: the first batch of each process, then the
    second of each, and so on. With the evaluation loaders of a DataModule this is the order of the
    split. Each sample counts once.

    Args:
        backbone: The model.
        batches: Samples with images; on any device, best the CPU (see `Tapper.tap`).
        points: Where features are tapped.
        cache: Where features of the tower are kept; for a frozen tower only.
        running: Context in which the model runs, instead of the caller's autocast.
        patches: How many patches of each picture are kept, before and behind the projection.

    Raises:
        ConfigError: A point does not exist in this model, or the tower is trained and there is a
            cache; or patches are kept, and the projection does not turn one patch into one token.
        DataError: There is no sample, or one has no image.
    """
    own: list[TappedBatch] | UserError
    try:
        with running or nullcontext(), evaluating(backbone.model):
            tapper = Tapper(backbone, points, cache, patches=patches)
            own = _stack_vectors(tapper.tap(batch) for batch in batches)
    except UserError as error:  # goes to the other processes too, which would wait for ever
        own = error
    return _merge(_gather_batches(own))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode while the block lasts."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _stack_vectors(batches: Iterable[TappedBatch]) -> list[TappedBatch]:
    """Return the batches with vectors that are slices of one tensor per point.

    If they were kept as they come, small tensors between the large ones of each batch, they would
    leave holes in the heap.
    """
    stacks: dict[str, Tensor] = {}  # point -> (samples so far, or more, width)
    found: list[TappedBatch] = []
    end = 0
    for batch in batches:
        start, end = end, end + len(batch.sample_ids)
        for point, vectors in batch.vectors.items():
            stack = stacks.get(point, vectors[:0])
            if len(stack) < end:
                room = vectors.new_empty(2 * end - start, vectors.shape[1])
                stack = torch.cat([stack[:start], room])
            stack[start:end] = vectors
            stacks[point] = stack
        found.append(replace(batch, vectors={}))
    sliced, start = [], 0
    for batch in found:
        end = start + len(batch.sample_ids)
        sliced.append(replace(batch, vectors={p: stack[start:end] for p, stack in stacks.items()}))
        start = end
    return sliced


def _gather_batches(own: list[TappedBatch] | UserError) -> list[TappedBatch]:
    """Return the batches of all processes: the first of each, then the second of each, and so on.

    Raises:
        UserError: The error of one of the processes.
    """
    of_process: list[list[TappedBatch] | UserError] = [own]
    if dist.is_available() and dist.is_initialized():
        of_process = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(of_process, own if isinstance(own, UserError) else _clone(own))
    for batches in of_process:
        if isinstance(batches, UserError):
            raise batches
    turns = zip_longest(*cast(list[list[TappedBatch]], of_process))
    return [batch for batch in chain.from_iterable(turns) if batch is not None]


def _clone(batches: list[TappedBatch]) -> list[TappedBatch]:
    """Return the batches with tensors of their own; a slice would be sent with its whole tensor."""
    cloned = []
    for batch in batches:
        vectors = {point: part.clone() for point, part in batch.vectors.items()}
        cloned.append(replace(batch, vectors=vectors))
    return cloned


def _merge(batches: Sequence[TappedBatch]) -> ExtractedSamples:
    """Return what was read of all samples, each once."""
    if not batches:
        raise DataError(
            "There are no features: no sample was extracted. Check that the split is not empty."
        )
    sample_ids = [*chain.from_iterable(batch.sample_ids for batch in batches)]
    first: dict[str, int] = {}
    for row, sample_id in enumerate(sample_ids):
        first.setdefault(sample_id, row)
    kept = [*first.values()]

    def join(parts: Iterable[Tensor]) -> Tensor:
        whole = torch.cat(list(parts))
        return whole if len(kept) == len(sample_ids) else whole[kept]

    vectors = {}
    for point in batches[0].vectors:
        vectors[point] = join(batch.vectors[point] for batch in batches)
    patches = [*chain.from_iterable(batch.patches for batch in batches)]
    return ExtractedSamples(
        sample_ids=tuple(first),
        targets=join(batch.targets for batch in batches),
        vectors=vectors,
        patches=tuple(patches[row] for row in kept) if patches else (),
    )
