"""A batch: token ids, masks, spans and pictures of several samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from operator import itemgetter

import torch
from torch import Tensor

from lightning_mllm.types import IGNORE_INDEX, AnswerForms, Segment


@dataclass(frozen=True)
class TokenSpans:
    """Segment -> bool mask of shape (batch, sequence), so that a segment may have gaps."""

    masks: Mapping[Segment, Tensor]

    def __getitem__(self, segment: Segment) -> Tensor:
        return self.masks[segment]

    def take(self, index: Tensor, valid: Tensor) -> TokenSpans:
        """Reorder positions: mask[b, i] becomes mask[b, index[b, i]] where `valid`, else False."""
        return self.map(lambda mask: mask.gather(1, index) & valid)

    def map(self, function: Callable[[Tensor], Tensor]) -> TokenSpans:
        """Apply a function to every mask."""
        return TokenSpans({segment: function(mask) for segment, mask in self.masks.items()})


@dataclass(frozen=True, kw_only=True)
class MultimodalBatch:
    """A padded batch, ready for the model.

    Attributes:
        input_ids: (batch, sequence), image placeholders already expanded to one token per visual
            feature.
        attention_mask: (batch, sequence), 1 at real tokens.
        labels: (batch, sequence), not shifted: the token id at positions that carry loss,
            `IGNORE_INDEX` elsewhere.
        spans: Where the segments are.
        targets: (batch,) class indices, -1 where a sample has no label.
        sample_ids: Id of each sample.
        pictures: Per sample, which picture it is about; the sample's id if the data does not say.
        kinds: Per sample, its kind of question, or None.
        answers: Per sample, the forms of its (last) answer; None without a kind.
        vision: Output of the family's image processor (`pixel_values`, `image_sizes`, ...), with
            images in the first dimension; empty without images.
        image_counts: Number of images of each sample, in the order of `vision`.
        pad_id: Token that fills padding.
        end_id: Token that ends an answer.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    spans: TokenSpans
    targets: Tensor
    sample_ids: tuple[str, ...]
    pictures: tuple[str, ...]
    kinds: tuple[str | None, ...]
    answers: tuple[AnswerForms | None, ...]
    vision: Mapping[str, Tensor]
    image_counts: tuple[int, ...]
    pad_id: int
    end_id: int

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def position_ids(self) -> Tensor:
        """(batch, sequence): 0 at each sample's first real token, on whichever side padding is."""
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)

    def model_inputs(self) -> dict[str, Tensor]:
        """Return the keyword arguments of the model's forward, labels left out."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
            **self.vision,
        }

    def prompts(self) -> MultimodalBatch:
        """Return the prompts: cut after each sample's LAST position, padded on the left."""
        length = self.input_ids.shape[1]
        positions = torch.arange(length, device=self.input_ids.device)
        last = self.spans[Segment.LAST].int().argmax(dim=1)  # (batch,)
        index = positions + (last - length + 1)[:, None]  # right-aligns LAST
        kept = self.attention_mask.gather(1, index.clamp(min=0)).bool() & (index >= 0)
        width = int(kept.sum(dim=1).max())  # of the longest prompt, which ends in the last column
        index, kept = index.clamp(min=0)[:, -width:], kept[:, -width:]
        return replace(
            self,
            input_ids=self.input_ids.gather(1, index).where(kept, self.pad_id),
            attention_mask=kept.to(self.attention_mask.dtype),
            labels=torch.full_like(index, IGNORE_INDEX),
            spans=self.spans.take(index, kept),
        )

    def take(self, rows: Sequence[int]) -> MultimodalBatch:
        """Return some of the samples, padded as the batch is; consecutive ones are views."""
        first = list(accumulate(self.image_counts, initial=0))
        images = [*chain.from_iterable(range(first[row], first[row + 1]) for row in rows)]
        vision = {name: value[_index(images)] for name, value in self.vision.items() if images}
        texts = replace(self, vision={})._map(itemgetter(_index(rows)))
        return replace(
            texts,
            sample_ids=tuple(self.sample_ids[row] for row in rows),
            pictures=tuple(self.pictures[row] for row in rows),
            kinds=tuple(self.kinds[row] for row in rows),
            answers=tuple(self.answers[row] for row in rows),
            image_counts=tuple(self.image_counts[row] for row in rows),
            vision=vision,
        )

    def split(self, size: int) -> list[MultimodalBatch]:
        """Return the batch in pieces of at most `size` samples, padded as the batch is."""
        rows = range(len(self))
        return [self.take(rows[start : start + size]) for start in rows[::size]]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MultimodalBatch:
        """Move all tensors."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> MultimodalBatch:
        """Pin all tensors."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> MultimodalBatch:
        return replace(
            self,
            input_ids=function(self.input_ids),
            attention_mask=function(self.attention_mask),
            labels=function(self.labels),
            spans=self.spans.map(function),
            targets=function(self.targets),
            vision={name: function(value) for name, value in self.vision.items()},
        )


def _index(numbers: Sequence[int]) -> slice | list[int]:
    """Return an index that selects these numbers in order: a slice if they are consecutive."""
    if not numbers:
        return []
    span = range(numbers[0], numbers[-1] + 1)
    return slice(span.start, span.stop) if list(numbers) == list(span) else list(numbers)
