"""Rows of tokens and pictures, padded and put together into one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_mllm.batches import Image, MultimodalBatch, TokenSpans
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.pictures import Picture
from lightning_mllm.data.text.encoded_sample import EncodedSample
from lightning_mllm.data.text.positions import Grid, find_positions
from lightning_mllm.errors import DataError
from lightning_mllm.types import IGNORE_INDEX, AnswerForms, Sample, Segment

PaddingSide = Literal["left", "right"]


class BatchRow(NamedTuple):
    """One sample, ready to be put into a batch.

    Attributes:
        sample: The sample as the dataset gives it.
        tokens: The tokens of the sample, one image token per visual feature.
        pictures: The pictures of the sample, without those of exchanges that are left out.
        answer: How its last answer may begin; None if the sample has no kind.
    """

    sample: Sample
    tokens: EncodedSample
    pictures: list[Picture]
    answer: AnswerForms | None


def make_batch(
    rows: Sequence[BatchRow],
    targets: Sequence[int],
    processor: CheckpointProcessor,
    pad_id: int,
    side: PaddingSide,
) -> MultimodalBatch:
    """Pad rows to one length and put them together.

    Args:
        rows: The samples of the batch.
        targets: The index of each sample's class, or -1 where there is none.
        processor: The processor of the checkpoint, for its family.
        pad_id: The token that fills padding.
        side: On which side shorter rows are padded.

    Raises:
        DataError: Answers end with different tokens.
    """
    input_ids = _pad([row.tokens.input_ids for row in rows], pad_id, side)
    ones = [torch.ones_like(row.tokens.input_ids) for row in rows]
    masks = {}
    for segment in Segment:
        masks[segment] = _pad([row.tokens.masks[segment] for row in rows], False, side)
    real = _pad(ones, 0, side)
    images = []
    for row in rows:
        images += [picture.image for picture in row.pictures]
    steps, offsets = real, None
    if processor.family.axes == 3:
        grids = [_find_grid(image, processor) for image in images]
        steps, offsets = find_positions(masks[Segment.IMAGE], real, grids)
    return MultimodalBatch(
        input_ids=input_ids,
        attention_mask=real,
        labels=input_ids.where(masks[Segment.ANSWER], IGNORE_INDEX),
        spans=TokenSpans(masks),
        targets=torch.tensor(targets),
        sample_ids=tuple(row.sample.id for row in rows),
        pictures=tuple(row.sample.picture or row.sample.id for row in rows),
        kinds=tuple(row.sample.kind for row in rows),
        partners=tuple(row.sample.partner for row in rows),
        answers=tuple(row.answer for row in rows),
        images=tuple(images),
        image_counts=tuple(len(row.pictures) for row in rows),
        pad_id=pad_id,
        end_id=_find_common_end(rows),
        steps=steps,
        offsets=offsets,
        token_types=processor.family.token_types,
    )


def check_batch_end(end: int, sample_id: str, ends: dict[int, str]) -> None:
    """Refuse an answer that ends with another token than the answers before it.

    Answers of one split could be in one batch, which has one end token.

    Args:
        end: The token that ends the answer.
        sample_id: The sample whose answer it is.
        ends: Token -> first sample whose answer ended with it; this one is added.

    Raises:
        DataError: It is another token than the first.
    """
    first = next(iter(ends), end)
    if end != first:
        raise DataError(
            f"The answers of samples {ends[first]!r} and {sample_id!r} end with different tokens "
            f"({first} and {end}), so generation would not know where to stop. Check their last "
            "characters.",
            "answer's end",
        )
    ends.setdefault(end, sample_id)


def _find_common_end(rows: Sequence[BatchRow]) -> int:
    """Return the token that ends the answers of all samples."""
    ends: dict[int, str] = {}
    for row in rows:
        check_batch_end(row.tokens.end_id, row.tokens.id, ends)
    return rows[0].tokens.end_id


def _find_grid(image: Image, processor: CheckpointProcessor) -> Grid:
    """Return the grid of an image's visual tokens, each of which merges a square of patches."""
    frames, rows, columns = image["image_grid_thw"][0].tolist()
    merge = int(processor.config.vision_config.spatial_merge_size)
    return frames, rows // merge, columns // merge


def _pad(rows: list[Tensor], value: int | bool, side: PaddingSide) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)
