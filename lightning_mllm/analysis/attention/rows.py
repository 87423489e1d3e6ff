"""The rows of attention shares."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan


@dataclass(frozen=True, kw_only=True)
class AttentionRow:
    """A question, a target, a layer and a head; a question that is left out has one row.

    Shares are of the attention of the target's positions, mean over these: they lie between 0 and
    1, and those of object, other, first, sinks and text sum to 1.

    Attributes:
        sample_id: Id of the question's sample.
        kind: Kind of the question.
        picture: Name of the picture that it is about.
        correct: Whether the model answers it right; False where it is not asked.
        measured: Whether its attention is looked at.
        target: Which positions look.
        layer: Number of the layer, from 0.
        head: Number of the head, from 0; -1 for the mean of all.
        object: Share of the patches that the question is about; NaN where there are none.
        other: Share of all other tokens of the image.
        first: Share of the first token.
        sinks: Share of other tokens that are sinks in front of the layer.
        text: Share of the rest of the text.
        random: Share of the control, as many random patches; NaN where there are none.
        distractor: Share of the patches of other objects; NaN where there are none.
        image: Share of all image tokens, sinks included.
        control_overlap: Patches that the control shares with the object.
        object_patches: Number of the object's patches.
        image_patches: Number of image tokens.
        sink_tokens: Number of sinks in front of the layer, besides the first token.
    """

    sample_id: str
    kind: str
    picture: str
    correct: bool
    measured: bool = True
    target: str = ""
    layer: int = -1
    head: int = -2
    object: float = nan
    other: float = nan
    first: float = nan
    sinks: float = nan
    text: float = nan
    random: float = nan
    distractor: float = nan
    image: float = nan
    control_overlap: int = 0
    object_patches: int = 0
    image_patches: int = 0
    sink_tokens: int = 0
