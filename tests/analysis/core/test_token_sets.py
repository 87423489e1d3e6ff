"""Padding is in no set, and sinks only where they are asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.batches import TokenSpans
from lightning_mllm.errors import ConfigError
from lightning_mllm.types import Segment
from tests.support.alignment_by_hand import places
from tests.support.questions import batches

SIDES = pytest.mark.parametrize("side", ["left", "right"])


@SIDES
@pytest.mark.parametrize("family", ["tiny_llava", "tiny_llava_next"])
def test_perceptual_is_the_image_and_textual_the_text_behind_it(
    family: str, side: str, request: pytest.FixtureRequest
) -> None:
    (batch,) = batches(request.getfixturevalue(family), 6, padding_side=side)

    masks = TokenSets().of(batch)

    for row in range(len(batch)):
        found = [masks[row, k].nonzero()[:, 0].tolist() for k in (0, 1)]
        assert found == [*places(batch, row)]
    assert not (masks.any(1) & ~batch.attention_mask.bool()).any()


def test_text_before_the_image_and_answers_are_textual_as_the_options_say(tiny_llava: str) -> None:
    (batch,) = batches(tiny_llava, 6)
    text = batch.attention_mask.bool() & ~batch.spans[Segment.IMAGE]

    everything = TokenSets(before_image=True).of(batch)[:, 1]
    without_answers = TokenSets(before_image=True, answers=False).of(batch)[:, 1]

    assert torch.equal(everything, text)
    assert torch.equal(without_answers, text & ~batch.spans[Segment.ANSWER])
    assert (everything & ~without_answers).any(1).all()


def test_a_caption_is_text_like_any_answer(tiny_llava: str) -> None:
    """The released script saves the empty instruction instead of the caption (bug A8)."""
    (batch,) = batches(tiny_llava, 6)
    only = batch.spans[Segment.IMAGE] | batch.spans[Segment.ANSWER]
    caption = replace(batch, attention_mask=only.long(), spans=TokenSpans(dict(batch.spans.masks)))

    assert torch.equal(TokenSets().of(caption)[:, 1], batch.spans[Segment.ANSWER])
    assert not TokenSets(answers=False).of(caption)[:, 1].any()


def test_an_image_at_the_first_position_is_an_image(tiny_llava: str) -> None:
    """The released reader takes index 0 for no image in one set-up, else for one (bug A18)."""
    (batch,) = batches(tiny_llava, 6, padding_side="right")
    first = int(batch.spans[Segment.IMAGE].int().argmax(1).min())
    spans = {segment: mask[:, first:] for segment, mask in batch.spans.masks.items()}
    cut = replace(batch, attention_mask=batch.attention_mask[:, first:], spans=TokenSpans(spans))

    masks = TokenSets().of(cut)

    assert masks[:, 0, 0].all()
    assert torch.equal(masks, TokenSets().of(batch)[..., first:])


def test_a_sink_is_many_times_the_median_of_its_set(tiny_llava: str) -> None:
    (batch,) = batches(tiny_llava, 6)
    masks = TokenSets().of(batch)
    norms = torch.ones(masks.shape[0], masks.shape[2])
    first = masks.int().argmax(-1)  # (batch, sets)
    norms[0, first[0, 0]] = 10.5
    norms[1, first[1, 1]] = 9.5
    norms[~batch.attention_mask.bool()] = 1e6  # padding does not decide what the median is

    kept = TokenSets().kept(masks, norms)

    assert kept.shape == (len(batch), 2, *masks.shape[1:])
    assert torch.equal(kept[:, 0], masks)
    assert (masks & ~kept[:, 1]).nonzero().tolist() == [[0, 0, int(first[0, 0])]]
    assert torch.equal(TokenSets(sink_ratio=None).kept(masks, norms), masks[:, None])


def test_a_ratio_that_would_leave_no_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="it must be above 1"):
        TokenSets(sink_ratio=1.0)
