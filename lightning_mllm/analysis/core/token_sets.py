"""Which tokens are perceptual and which textual; padding is neither.

Nor is what frames an image: row breaks, names of tiles and other text of its processor.

Perceptual are the tokens of images, textual those after the first image. What stands before it (the
begin token, the system text) is left out, as in Shukor and Cord's multitask set-up, unless it is
asked for.

A few tokens have states that are many times larger than all others: attention sinks, often the
first token (Sun et al., "Massive Activations in LLMs", 2024). A single one decides a mean over
tokens, and a maximum. So each measure can be taken without them too: a token is a sink at a layer
where its norm is many times the median over the tokens of its set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mllm.alignment_names import ALL_TOKENS, NO_SINKS
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.statistics.masked import masked_median
from lightning_mllm.types import Segment

SETS = ("perceptual", "textual")


@dataclass(frozen=True)
class TokenSets:
    """Which tokens count.

    Attributes:
        before_image: Whether text before the first image is textual too.
        answers: Whether answers, such as the captions of images, are textual too; the prompt always
            is.
        sink_ratio: From how many times the median norm on a token is an attention sink; with null
            no token is.
    """

    before_image: bool = False
    answers: bool = True
    sink_ratio: float | None = 10.0

    def __post_init__(self) -> None:
        if self.sink_ratio is not None and self.sink_ratio <= 1:
            raise ConfigError(
                f"sink_ratio is {self.sink_ratio}; it must be above 1, or null for no sinks."
            )

    @property
    def variants(self) -> tuple[str, ...]:
        """For which tokens measures are taken."""
        return (ALL_TOKENS,) if self.sink_ratio is None else (ALL_TOKENS, NO_SINKS)

    def of(self, batch: MultimodalBatch) -> Tensor:
        """Return which positions are in which set, (batch, sets, sequence) bool."""
        real, image = batch.attention_mask.bool(), batch.spans[Segment.IMAGE]
        frame = batch.spans.masks.get(Segment.IMAGE_FRAME, ~real)
        text = real & ~image & ~frame
        if not self.before_image:
            text &= image.cumsum(1) > 0
        if not self.answers:
            text &= ~batch.spans[Segment.ANSWER]
        return torch.stack([real & image, text], dim=1)

    def kept(self, masks: Tensor, norms: Tensor) -> Tensor:
        """Return which positions count at a layer, per variant.

        Args:
            masks: (batch, sets, sequence) bool, from `of`.
            norms: (batch, sequence), of the layer's states.

        Returns:
            (batch, variants, sets, sequence) bool; no set is empty that was not.
        """
        if self.sink_ratio is None:
            return masks[:, None]
        across = norms[:, None].expand(masks.shape)
        return torch.stack(
            [masks, masks & (across <= self.sink_ratio * masked_median(across, masks)[..., None])],
            1,
        )
