"""A batch: token ids, masks, spans and pictures of several samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from operator import itemgetter

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_mllm.types import IGNORE_INDEX, AnswerForms, Segment, TokenTypes

Image = Mapping[str, Tensor]  # what a processor returns for one picture, leading dimension kept


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
        partners: Per sample, the id of the sample that it is compared with, or None; empty where
            the data have no pairs.
        answers: Per sample, the forms of its (last) answer; None without a kind.
        images: What the checkpoint's processor returns for each image alone (`pixel_values`,
            `image_grid_thw`, ...), sample by sample; empty without images, or where the model gets
            them encoded.
        image_counts: Number of images of each sample, in the order of `images`.
        pad_id: Token that fills padding.
        end_id: Token that ends an answer.
        steps: (batch, sequence), by how much each token moves the positions of those after it: 1,
            and 0 at padding. Under M-RoPE the last token of an image moves them by the longer side
            of its grid, and the others by 0.
        offsets: (axes, batch, sequence), where in its image each token is, in time, row and column;
            0 at text. None where positions have one axis.
        token_types: Which token types the model's forward takes; see `families.Family`.
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
    images: tuple[Image, ...]
    image_counts: tuple[int, ...]
    pad_id: int
    end_id: int
    steps: Tensor
    offsets: Tensor | None = None
    token_types: TokenTypes | None = None
    partners: tuple[str | None, ...] = ()

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def position_ids(self) -> Tensor:
        """(batch, sequence), or (axes, batch, sequence) where positions have several axes.

        0 at each sample's first real token, on whichever side padding is.
        """
        before = self.steps.cumsum(-1) - self.steps
        return before if self.offsets is None else before + self.offsets

    def text_inputs(self) -> dict[str, Tensor]:
        """Return the keyword arguments of the model's forward, without those of images."""
        inputs = {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }
        if self.token_types == "suffix":
            last = self.spans[Segment.LAST].long()
            inputs["token_type_ids"] = (last.cumsum(1) - last) * self.attention_mask
        elif self.token_types is not None:
            name = "token_type_ids" if self.token_types == "image" else "mm_token_type_ids"
            inputs[name] = self.spans[Segment.IMAGE].long()
        return inputs

    def model_inputs(self) -> dict[str, Tensor]:
        """Return the keyword arguments of the model's forward, labels left out."""
        return {**self.text_inputs(), **join_images(self.images)}

    def prompts(self) -> MultimodalBatch:
        """Return the prompts: cut after each sample's LAST position, padded on the left."""
        length = self.input_ids.shape[1]
        positions = torch.arange(length, device=self.input_ids.device)
        last = self.spans[Segment.LAST].int().argmax(dim=1)  # (batch,)
        index = positions + (last - length + 1)[:, None]  # right-aligns LAST
        kept = self.attention_mask.gather(1, index.clamp(min=0)).bool() & (index >= 0)
        width = int(kept.sum(dim=1).max())  # of the longest prompt, which ends in the last column
        prompts = self.gather(index.clamp(min=0)[:, -width:], kept[:, -width:])
        return replace(prompts, labels=torch.full_like(prompts.labels, IGNORE_INDEX))

    def gather(self, index: Tensor, valid: Tensor) -> MultimodalBatch:
        """Reorder positions: token [b, i] is token [b, index[b, i]] where `valid`, else padding.

        Positions are counted again over the tokens that are left.

        Args:
            index: (batch, new sequence), from 0 to sequence - 1.
            valid: (batch, new sequence) bool.
        """
        offsets = None
        if self.offsets is not None:
            offsets = self.offsets.gather(2, index.expand(len(self.offsets), -1, -1))
            offsets = offsets.where(valid, 0)
        return replace(
            self,
            input_ids=self.input_ids.gather(1, index).where(valid, self.pad_id),
            attention_mask=valid.to(self.attention_mask.dtype),
            labels=self.labels.gather(1, index).where(valid, IGNORE_INDEX),
            spans=self.spans.take(index, valid),
            steps=self.steps.gather(1, index).where(valid, 0),
            offsets=offsets,
        )

    def take(self, rows: Sequence[int]) -> MultimodalBatch:
        """Return some of the samples, padded as the batch is; consecutive ones are views."""
        first = list(accumulate(self.image_counts, initial=0))
        images = chain.from_iterable(range(first[row], first[row + 1]) for row in rows)
        chosen = _index(rows)
        texts = replace(self, images=(), offsets=None)._map(itemgetter(chosen))
        return replace(
            texts,
            sample_ids=tuple(self.sample_ids[row] for row in rows),
            pictures=tuple(self.pictures[row] for row in rows),
            kinds=tuple(self.kinds[row] for row in rows),
            partners=tuple(self.partners[row] for row in rows) if self.partners else (),
            answers=tuple(self.answers[row] for row in rows),
            image_counts=tuple(self.image_counts[row] for row in rows),
            images=tuple(self.images[image] for image in images) if self.images else (),
            offsets=None if self.offsets is None else self.offsets[:, chosen],
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
            images=tuple(map_image(function, image) for image in self.images),
            steps=function(self.steps),
            offsets=None if self.offsets is None else function(self.offsets),
        )


def map_image(function: Callable[[Tensor], Tensor], image: Image) -> dict[str, Tensor]:
    """Apply a function to every tensor of an image."""
    return {name: function(value) for name, value in image.items()}


def join_images(images: Sequence[Image]) -> dict[str, Tensor]:
    """Return the model's arguments for several images: each padded to the largest, then joined.

    One rule fits all families: views of an image are padded to the most views, pictures of any size
    to the largest, and tiles or patches without an image dimension follow each other.
    """
    joined = {}
    for name in images[0] if images else ():
        parts = [image[name] for image in images]
        sizes = torch.tensor([part.shape[1:] for part in parts]).amax(0).tolist()
        joined[name] = torch.cat([_pad_to(part, sizes) for part in parts])
    return joined


def _pad_to(part: Tensor, sizes: Sequence[int]) -> Tensor:
    """Pad all dimensions but the first at their end, with 0."""
    widths: list[int] = []
    for have, want in zip(reversed(part.shape[1:]), reversed(sizes), strict=True):
        widths += [0, want - have]
    return pad(part, widths) if any(widths) else part


def _index(numbers: Sequence[int]) -> slice | list[int]:
    """Return an index that selects these numbers in order: a slice if they are consecutive."""
    if not numbers:
        return []
    span = range(numbers[0], numbers[-1] + 1)
    return slice(span.start, span.stop) if list(numbers) == list(span) else list(numbers)
