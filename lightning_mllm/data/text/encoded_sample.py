"""The tokens of one sample: which segments they belong to, and room for its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_mllm.types import Segment


@dataclass(frozen=True)
class EncodedSample:
    """One sample's tokens.

    Attributes:
        id: The id of the sample.
        input_ids: Token ids of shape (length,).
        masks: Segment -> bool mask of shape (length,).
        end_id: The token that ends the (last) answer.
    """

    id: str
    input_ids: Tensor
    masks: Mapping[Segment, Tensor]
    end_id: int

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The tokens after the (last) prompt, end-of-turn token included."""
        last = int(self.masks[Segment.LAST].nonzero())
        return tuple(self.input_ids[last + 1 :].tolist())

    def gather(self, positions: Tensor) -> EncodedSample:
        """Return the tokens at some positions, which may repeat."""
        masks = {segment: mask[positions] for segment, mask in self.masks.items()}
        return replace(self, input_ids=self.input_ids[positions], masks=masks)

    def truncate(self, length: int) -> EncodedSample:
        """Return the first `length` tokens; the end of the answer is cut off."""
        return self.gather(torch.arange(length))

    def expand_images(
        self,
        runs: Sequence[int],
        regions: Mapping[Segment, Tensor],
    ) -> EncodedSample:
        """Repeat the k-th token of an image as often as the k-th of `runs` says.

        Args:
            runs: How many visual tokens each token of an image stands for.
            regions: Segment -> mask over the visual tokens of all images.
        """
        counts = torch.ones_like(self.input_ids)
        counts[self.masks[Segment.IMAGE]] = torch.tensor(runs, dtype=counts.dtype)
        expanded = self.gather(torch.arange(len(self)).repeat_interleave(counts))
        image = expanded.masks[Segment.IMAGE]
        last = torch.zeros_like(image)
        last[expanded.masks[Segment.LAST].nonzero()[-1]] = True  # may be an image's last token
        masks = {**expanded.masks, Segment.LAST: last}
        for segment, mask in regions.items():
            masks[segment] = torch.zeros_like(image).masked_scatter(image, mask)
        return replace(expanded, masks=masks)
