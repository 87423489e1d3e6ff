"""A sample's tokens with the visual tokens of another picture in the place of its own.

Pictures have different numbers of visual tokens, and some families write text between them: row
breaks, names of tiles. All of it stands in one run, which is replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from lightning_mllm.batches import MultimodalBatch, TokenSpans
from lightning_mllm.errors import DataError
from lightning_mllm.types import Segment


def take_unpadded(batch: MultimodalBatch, row: int) -> MultimodalBatch:
    """Return one sample without padding.

    Args:
        batch: On the CPU, without pixels.
        row: Number of the sample.
    """
    alone = batch.take([row])
    return _take_positions(alone, alone.attention_mask[0].nonzero()[:, 0])


def cut_picture(sample: MultimodalBatch) -> MultimodalBatch:
    """Return the picture's tokens of a sample, with what the family writes between them.

    Args:
        sample: From `take_unpadded`, with one picture.

    Raises:
        DataError: They do not stand together.
    """
    start, stop = _find_picture(sample)
    return _take_positions(sample, torch.arange(start, stop))


def replace_picture(sample: MultimodalBatch, picture: MultimodalBatch) -> MultimodalBatch:
    """Return a sample with the tokens of another picture in the place of its own.

    Args:
        sample: From `take_unpadded`, with one picture.
        picture: From `cut_picture`.

    Raises:
        DataError: The sample's own picture's tokens do not stand together.
    """
    start, stop = _find_picture(sample)
    length = sample.input_ids.shape[1]
    before = _take_positions(sample, torch.arange(start))
    after = _take_positions(sample, torch.arange(stop, length))
    parts = (before, picture, after)
    return _join(sample, parts, lambda tensors: torch.cat(tensors, dim=-1))


def stack_samples(samples: Sequence[MultimodalBatch]) -> MultimodalBatch:
    """Return one batch of samples without padding, padded on the right.

    Args:
        samples: One sample each, without pixels.
    """
    longest = max(sample.input_ids.shape[1] for sample in samples)
    positions, padded = torch.arange(longest), list[MultimodalBatch]()
    for sample in samples:
        there = positions < sample.input_ids.shape[1]
        padded.append(sample.gather((positions * there)[None], there[None]))
    stacked = _join(padded[0], padded, lambda tensors: torch.cat(tensors, dim=-2))
    return replace(
        stacked,
        targets=torch.cat([sample.targets for sample in samples]),
        sample_ids=tuple(chain.from_iterable(sample.sample_ids for sample in samples)),
        pictures=tuple(chain.from_iterable(sample.pictures for sample in samples)),
        kinds=tuple(chain.from_iterable(sample.kinds for sample in samples)),
        answers=tuple(chain.from_iterable(sample.answers for sample in samples)),
        image_counts=tuple(chain.from_iterable(sample.image_counts for sample in samples)),
    )


def _find_picture(sample: MultimodalBatch) -> tuple[int, int]:
    """Return where a sample's picture begins and ends."""
    own = sample.spans[Segment.IMAGE][0] | sample.spans[Segment.IMAGE_FRAME][0]
    places = own.nonzero()[:, 0]
    if not len(places) or int(places[-1] - places[0]) + 1 != len(places):
        raise DataError(
            f"The visual tokens of sample {sample.sample_ids[0]!r} do not stand together, so "
            "another picture can't take their place. Leave the sample out."
        )
    return int(places[0]), int(places[-1]) + 1


def _take_positions(sample: MultimodalBatch, index: Tensor) -> MultimodalBatch:
    """Return some positions of one sample, in order."""
    return sample.gather(index[None], torch.ones_like(index, dtype=torch.bool)[None])


def _join(
    first: MultimodalBatch,
    parts: Sequence[MultimodalBatch],
    join: Callable[[list[Tensor]], Tensor],
) -> MultimodalBatch:
    """Return a batch whose tensors of positions are joined from those of several."""
    masks: dict[Segment, Tensor] = {}
    for segment in first.spans.masks:
        masks[segment] = join([part.spans[segment] for part in parts])
    offsets = None
    if first.offsets is not None:
        offsets = join([part.offsets for part in parts if part.offsets is not None])
    return replace(
        first,
        input_ids=join([part.input_ids for part in parts]),
        attention_mask=join([part.attention_mask for part in parts]),
        labels=join([part.labels for part in parts]),
        spans=TokenSpans(masks),
        steps=join([part.steps for part in parts]),
        offsets=offsets,
    )
