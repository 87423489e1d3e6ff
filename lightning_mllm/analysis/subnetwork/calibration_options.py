"""Which tokens a calibration counts, and which part of each sample the model is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.types import Segment

Tokens = Literal["perceptual", "textual", "both"]
Context = Literal["own", "full"]


@dataclass(frozen=True)
class CalibrationOptions:
    """Which tokens a calibration counts, and what the model is given.

    Attributes:
        tokens: Which tokens are counted: those of images, of text, or both.
        context: What these tokens attend to: each other only (`own`), or the whole sequence
            (`full`).
        sequential: Whether each layer is pruned before the next one is calibrated.
        before_image: Whether text before the first image, such as the system's, counts as text.
        answers: Whether the tokens of answers count as text.
    """

    tokens: Tokens = "both"
    context: Context = "own"
    sequential: bool = True
    before_image: bool = True
    answers: bool = True

    def __post_init__(self) -> None:
        _check_choice("tokens", self.tokens, get_args(Tokens))
        _check_choice("context", self.context, get_args(Context))

    @property
    def needs_images(self) -> bool:
        """Whether nothing is counted in samples without an image."""
        return self.tokens == "perceptual" or not self.before_image

    def mark_counted(self, batch: MultimodalBatch) -> Tensor:
        """Return which positions count, (batch, sequence) bool."""
        sets = TokenSets(before_image=self.before_image, answers=self.answers, sink_ratio=None)
        perceptual, textual = sets.of(batch).unbind(1)
        if self.tokens == "both":
            return perceptual | textual
        return perceptual if self.tokens == "perceptual" else textual

    def cut(self, batch: MultimodalBatch) -> tuple[MultimodalBatch, Tensor]:
        """Return what the LLM is given, and which of its positions count, (batch, sequence) bool.

        Tokens that the LLM must not see are cut out, not masked: a sliding window counts masked
        positions too.
        """
        counted = self.mark_counted(batch)
        if self.context == "full":
            return batch, counted
        real = batch.attention_mask.bool()
        first = real & (real.cumsum(1) == 1)
        if self.tokens == "textual":  # an image's token has no state without the image
            first &= ~batch.spans[Segment.IMAGE]
        seen = counted | first
        index = (~seen).int().argsort(dim=1, stable=True)[:, : int(seen.sum(1).max())]
        seen = seen.gather(1, index)
        shown = batch.gather(index, seen)
        if self.tokens == "textual":  # then no image is seen
            shown = replace(shown, images=(), image_counts=(0,) * len(batch))
        return shown, counted.gather(1, index) & seen


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; it can be {', '.join(known)}.")
