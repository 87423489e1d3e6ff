"""Sets of tokens that can be attended to: the parts of a sequence, and controls for the object.

Each token is in one part, so that the shares of the parts sum to 1:

- `object`: patches of what the sample is about; `other`: all other tokens of the image;
- `first`: the first token, on which heads that look at nothing rest as a rule;
- `sinks`: tokens whose state has many times the median norm of their kind (image or text) in front
  of the layer, see `TokenSets`. In image tokens such states are those that attention rests on
  without use (Kang et al., arXiv 2503.03321);
- `text`: all other text.

Controls are subsets of `other`: as many `random` patches as the object has, and the patches of
other objects (`distractor`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.statistics.masked import masked_median
from lightning_mllm.types import Segment

PARTS = ("object", "other", "first", "sinks", "text")
CONTROLS = ("random", "distractor")
_SEGMENTS = {
    "object": Segment.IMAGE_OBJECT,
    "random": Segment.IMAGE_RANDOM,
    "distractor": Segment.IMAGE_DISTRACTOR,
}


@dataclass(frozen=True, eq=False)
class KeySets:
    """The sets of a batch.

    Attributes:
        image: (batch, sequence) bool, tokens of images.
        text: (batch, sequence) bool, all other tokens but padding.
        first: (batch, sequence) bool, the first token of each sample.
        shown: Name of a set of patches -> (batch, sequence) bool.
        sink_ratio: From how many times the median norm on a token is a sink; None if none is.
    """

    image: Tensor
    text: Tensor
    first: Tensor
    shown: dict[str, Tensor]
    sink_ratio: float | None

    @classmethod
    def of(cls, batch: MultimodalBatch, sink_ratio: float | None) -> KeySets:
        """Find them; a set that the batch does not know is empty."""
        real, masks = batch.attention_mask.bool(), batch.spans.masks
        nowhere = torch.zeros_like(real)
        image = real & masks.get(Segment.IMAGE, nowhere)
        first = real & (real.cumsum(1) == 1)
        shown = {name: real & masks.get(segment, nowhere) for name, segment in _SEGMENTS.items()}
        return cls(image, real & ~image, first, shown, sink_ratio)

    def find_sinks(self, norms: Tensor) -> Tensor:
        """Return which tokens are sinks, besides the first, (batch, sequence) bool.

        Args:
            norms: (batch, sequence), of the states that enter the layer.
        """
        sinks = torch.zeros_like(self.image)
        for kind in (self.image, self.text) if self.sink_ratio is not None else ():
            median = masked_median(norms, kind)[:, None]
            sinks |= kind & (norms > self.sink_ratio * median)  # type: ignore[operator]
        return sinks & ~self.first

    def at(self, norms: Tensor) -> dict[str, Tensor]:
        """Return the parts and controls in front of a layer, (batch, sequence) bool each."""
        sinks = self.find_sinks(norms)
        left = ~(sinks | self.first)
        sets = {name: mask & left for name, mask in self.shown.items()}
        other = self.image & left & ~sets["object"]
        return {**sets, "other": other, "first": self.first, "sinks": sinks} | {
            "text": self.text & left
        }

    def lacking(self) -> dict[str, Tensor]:
        """Return, per set of patches, which samples have none, (batch,) bool."""
        return {name: ~mask.any(1) for name, mask in self.shown.items()}
