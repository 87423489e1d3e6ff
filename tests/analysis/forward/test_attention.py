"""Attention weights of chosen rows: eager's, under edits too, and the model does not notice.

That they are eager's in each family is in tests/families.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from lightning_mllm.analysis import Block, Skip, Window, knockout, skipping
from lightning_mllm.analysis.forward.attention import QueryRows, observe_attention
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.types import Segment
from tests.support.decoders import (
    LAYERS,
    count_hooks,
    generate,
    last_logits,
    make_backbone,
    make_batch,
)

TO_LAST = Block.parse("image->last")


@pytest.fixture
def backbone(tiny_llava: str) -> Backbone:
    return make_backbone(tiny_llava)


@pytest.fixture
def prompts(tiny_llava: str) -> MultimodalBatch:
    return make_batch(tiny_llava).prompts()


def look(
    backbone: Backbone, batch: MultimodalBatch, rows: QueryRows, layers: list[int] | None = None
) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    with torch.no_grad(), observe_attention(backbone, rows, found.__setitem__, layers):
        backbone.model(**batch.model_inputs(), use_cache=False)
    return found


def test_weights_sum_to_1_and_rows_that_are_not_there_have_none(
    backbone: Backbone, prompts: MultimodalBatch
) -> None:
    rows = QueryRows.of(prompts.spans[Segment.QUESTION])

    found = look(backbone, prompts, rows)

    assert list(found) == list(range(LAYERS))
    assert not rows.valid.all()  # questions of different lengths
    for weights in found.values():
        assert weights.dtype == torch.float64
        expected = rows.valid[:, None].expand(weights.shape[:3]).double()
        torch.testing.assert_close(weights.sum(-1), expected)
        assert not weights.masked_select(~prompts.attention_mask.bool()[:, None, None]).any()


def test_some_layers_are_looked_at_as_among_all(
    backbone: Backbone, prompts: MultimodalBatch
) -> None:
    rows = QueryRows.of(prompts.spans[Segment.LAST])
    every = look(backbone, prompts, rows)

    some = look(backbone, prompts, rows, [2])

    assert list(some) == [2]
    assert torch.equal(some[2], every[2])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_under_a_knockout_the_weights_are_those_that_are_left(
    tiny_llava: str, prompts: MultimodalBatch, attention: str
) -> None:
    backbone = make_backbone(tiny_llava, attention, torch.float32)
    eager = make_backbone(tiny_llava, "eager", torch.float32)
    rows = QueryRows.of(prompts.spans[Segment.LAST])
    within = Window(1, 1, 3)

    with knockout(backbone, prompts, [TO_LAST], within):
        found = look(backbone, prompts, rows)
    with torch.no_grad(), knockout(eager, prompts, [TO_LAST], within):
        output = eager.model(**prompts.model_inputs(), output_attentions=True)

    image = prompts.spans[Segment.IMAGE]
    for layer, weights in found.items():
        torch.testing.assert_close(
            weights[:, :, 0], output.attentions[layer][:, :, -1], rtol=0, atol=1e-5
        )
        hidden = weights[:, :, 0].masked_select(image[:, None])
        assert (hidden == 0).all() if layer in within else (hidden > 0).all()


def test_the_model_says_the_same_while_it_is_looked_at(
    backbone: Backbone, prompts: MultimodalBatch
) -> None:
    rows, before = QueryRows.of(prompts.attention_mask.bool()), last_logits(backbone, prompts)

    with observe_attention(backbone, rows, lambda *_: None):
        during = last_logits(backbone, prompts)

    assert torch.equal(before, during)


def test_after_an_exception_nothing_is_left(backbone: Backbone, prompts: MultimodalBatch) -> None:
    last_logits(backbone, prompts)  # transformers has hooks of its own
    hooks, own = count_hooks(backbone), AttentionInterface()["sdpa"]

    def fail(*_: object) -> None:
        raise RuntimeError("stop")

    rows = QueryRows.of(prompts.spans[Segment.LAST])
    with pytest.raises(RuntimeError, match="stop"), observe_attention(backbone, rows, fail):
        last_logits(backbone, prompts)

    assert count_hooks(backbone) == hooks
    assert AttentionInterface()["sdpa"] is own


def test_in_generation_the_prompt_is_looked_at_once(
    backbone: Backbone, prompts: MultimodalBatch
) -> None:
    rows, seen = QueryRows.of(prompts.spans[Segment.LAST]), list[int]()

    with observe_attention(backbone, rows, lambda layer, _: seen.append(layer)):
        generate(backbone, prompts, max_new_tokens=3)

    assert seen == list(range(LAYERS))


def test_what_runs_on_other_rows_is_refused(backbone: Backbone, prompts: MultimodalBatch) -> None:
    rows = QueryRows.of(prompts.spans[Segment.LAST])
    skip = Skip(computation="block", share=0.5, visible=False, start=1)

    with (
        pytest.raises(ConfigError, match=r"Layer 1 runs on \d+ positions.*Look at them without"),
        skipping(backbone, prompts, skip),
        observe_attention(backbone, rows, lambda *_: None),
    ):
        last_logits(backbone, prompts)


def test_attention_of_another_kind_is_refused(tiny_llava: str, prompts: MultimodalBatch) -> None:
    rows = QueryRows.of(prompts.spans[Segment.LAST])
    other, sinking = make_backbone(tiny_llava, "exact"), make_backbone(tiny_llava)
    decoder_layers(sinking)[1].self_attn.sinks = torch.nn.Parameter(torch.zeros(4))  # type: ignore[union-attr]
    for backbone, message in (
        (other, "'exact' gets another. Load the model with attention=sdpa"),
        (sinking, "llava: the attention of its layer 1 gives a part of it to no token"),
    ):
        with (
            pytest.raises(ConfigError, match=re.escape(message)),
            observe_attention(backbone, rows, lambda *_: None),
        ):
            pass


def test_attention_that_is_not_seen_is_refused(
    backbone: Backbone, prompts: MultimodalBatch
) -> None:
    layer = decoder_layers(backbone)[2]
    own = layer.self_attn.forward  # type: ignore[union-attr]
    layer.self_attn.forward = lambda **given: (given["hidden_states"], None)  # type: ignore[union-attr]
    rows = QueryRows.of(prompts.spans[Segment.LAST])

    with (
        pytest.raises(ConfigError, match="layer 2 is not looked up as that of other models"),
        observe_attention(backbone, rows, lambda *_: None),
    ):
        last_logits(backbone, prompts)

    layer.self_attn.forward = own  # type: ignore[union-attr]
