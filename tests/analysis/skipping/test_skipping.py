"""What leaves a model that skips, against one that computes everything and then leaves it out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.analysis.skipping.skipping import skipping
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.models.loss import answer_loss
from lightning_mllm.types import Segment
from tests.support.decoders import LAYERS, generate, make_batch
from tests.support.skipping_by_hand import chosen_columns, reference_logits, reference_states
from tests.support.skipping_cases import (
    CASES,
    EACH,
    ONE_LAYER,
    SIDES,
    layer_inside,
    logits,
    make_backbone,
    rows_into,
    states,
)


@pytest.fixture
def backbone(tiny_llava: str) -> Backbone:
    return make_backbone(tiny_llava)


@EACH
@SIDES
def test_what_is_skipped_is_left_out_and_nothing_else(
    backbone: Backbone, tiny_llava: str, name: str, side: Any
) -> None:
    batch, skip = make_batch(tiny_llava, side), CASES[name]
    real = batch.attention_mask.bool()

    with torch.no_grad():
        expected = reference_states(backbone, batch, skip)
    with skipping(backbone, batch, skip):
        found = states(backbone, batch)

    clean = states(backbone, batch)
    for layer, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if skip.computation == "parallel_blocks" and layer in skip.layers(LAYERS):
            continue  # between the two of a pair
        torch.testing.assert_close(ours[real], theirs[real], rtol=0, atol=1e-10)
    assert not torch.isclose(found[-1][real], clean[-1][real]).all()


@pytest.mark.parametrize("decoder", ["mistral", "qwen2"])
@pytest.mark.parametrize("name", ["ffn", "attention, seen", "block", "parallel", "parallel blocks"])
def test_it_is_so_in_each_decoder_of_llama_s_kind(
    tiny_llava_next: str, decoder: Any, name: str
) -> None:
    options: dict[str, Any] = {"sliding_window": None} if decoder == "mistral" else {}
    backbone = make_backbone(tiny_llava_next, decoder=decoder, **options)
    batch = make_batch(tiny_llava_next, "right")
    real = batch.attention_mask.bool()

    with torch.no_grad():
        expected = reference_logits(backbone, batch, CASES[name])
    with skipping(backbone, batch, CASES[name]):
        found = logits(backbone, batch)

    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-9)


@EACH
def test_eager_attention_skips_the_same(tiny_llava: str, name: str) -> None:
    backbone, batch = make_backbone(tiny_llava, "eager", torch.float32), make_batch(tiny_llava)
    real = batch.attention_mask.bool()

    with torch.no_grad():
        expected = reference_logits(backbone, batch, CASES[name])
    with skipping(backbone, batch, CASES[name]):
        found = logits(backbone, batch)

    torch.testing.assert_close(found[real], expected[real], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name", [name for name, skip in CASES.items() if skip.computation != "parallel_blocks"]
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_skipping_no_token_is_the_model_itself_to_the_bit(
    tiny_llava: str, name: str, attention: str
) -> None:
    backbone, batch = make_backbone(tiny_llava, attention, torch.float32), make_batch(tiny_llava)

    with skipping(backbone, batch, replace(CASES[name], share=0.0)):
        found = logits(backbone, batch)

    assert torch.equal(found, logits(backbone, batch))


@SIDES
def test_a_token_that_skips_the_ffn_is_x_prime_exactly(tiny_llava: str, side: Any) -> None:
    """The released code doubles such tokens, or adds their norm to them (bug A6 of its list)."""
    backbone, batch = make_backbone(tiny_llava, dtype=torch.float32), make_batch(tiny_llava, side)
    skip = Skip(share=0.5, **ONE_LAYER)
    _, attended = layer_inside(backbone, batch, 2)
    chosen = chosen_columns(batch, skip, 2)

    with skipping(backbone, batch, skip):
        left = states(backbone, batch)[2]

    assert chosen.any()
    assert torch.equal(left[chosen], attended[chosen])
    others = batch.attention_mask.bool() & ~chosen
    torch.testing.assert_close(left[others], states(backbone, batch)[2][others])


def test_a_token_that_skips_the_block_is_x_exactly(tiny_llava: str) -> None:
    backbone, batch = make_backbone(tiny_llava, dtype=torch.float32), make_batch(tiny_llava)
    skip = Skip(computation="block", share=0.5, **ONE_LAYER)
    entering, _ = layer_inside(backbone, batch, 2)
    chosen = chosen_columns(batch, skip, 2)

    with skipping(backbone, batch, skip):
        left = states(backbone, batch)[2]

    assert torch.equal(left[chosen], entering[chosen])


def test_a_token_that_skips_attention_keeps_its_residual_and_the_ffn_s_own_norm(
    backbone: Backbone, tiny_llava: str
) -> None:
    """The released code loses the residual, or uses attention's norm (bug A6 of its list)."""
    batch, skip = make_batch(tiny_llava), Skip(computation="attention", share=0.5, **ONE_LAYER)
    entering, _ = layer_inside(backbone, batch, 2)
    chosen, layer = chosen_columns(batch, skip, 2), decoder_layers(backbone)[2]
    layer_any: Any = layer

    with skipping(backbone, batch, skip):
        left = states(backbone, batch)[2]

    x = entering[chosen]
    torch.testing.assert_close(
        left[chosen], x + layer_any.mlp(layer_any.post_attention_layernorm(x))
    )


def test_a_parallel_layer_feeds_its_ffn_what_attention_gets(
    backbone: Backbone, tiny_llava: str
) -> None:
    batch = make_batch(tiny_llava)
    skip = Skip(computation="parallel", share=1.0, tokens="all", phase="both", **ONE_LAYER)
    entering, attended = layer_inside(backbone, batch, 2)
    layer: Any = decoder_layers(backbone)[2]
    real = batch.attention_mask.bool()

    with skipping(backbone, batch, skip):
        left = states(backbone, batch)[2]

    expected = attended + layer.mlp(layer.input_layernorm(entering))
    torch.testing.assert_close(left[real], expected[real])


@pytest.mark.parametrize(
    ("skip", "into_attention", "into_ffn"),
    [
        (Skip(share=0.5, **ONE_LAYER), 1.0, 0.5),
        (Skip(share=1.0, **ONE_LAYER), 1.0, 0.0),
        (Skip(computation="attention", share=0.5, **ONE_LAYER), 0.5, 1.0),
        (Skip(computation="block", share=0.25, **ONE_LAYER), 0.75, 0.75),
    ],
)
def test_skipped_tokens_work_is_not_done(
    backbone: Backbone, tiny_llava: str, skip: Skip, into_attention: float, into_ffn: float
) -> None:
    batch = make_batch(tiny_llava, numbers=(0,))
    layer: Any = decoder_layers(backbone)[2]
    image, length = int(batch.spans[Segment.IMAGE].sum()), batch.input_ids.shape[1]

    with (
        skipping(backbone, batch, skip),
        rows_into(layer.mlp) as fed,
        rows_into(layer.self_attn) as attending,
    ):
        logits(backbone, batch)

    assert attending == [length - image + int(into_attention * image)]
    assert fed == [length - image + int(into_ffn * image)]


def test_a_block_that_all_skip_is_not_run_at_all(backbone: Backbone, tiny_llava: str) -> None:
    prompts, layer = make_batch(tiny_llava).prompts(), decoder_layers(backbone)[1]
    parts: Any = layer
    skip = Skip(computation="block", share=1.0, tokens="all", phase="both", start=1, stop=2)

    with (
        skipping(backbone, prompts, skip),
        rows_into(parts.mlp) as fed,
        rows_into(parts.self_attn) as attending,
    ):
        generate(backbone, prompts, max_new_tokens=4)

    assert fed == attending == []


def gradients(backbone: Backbone, loss: Tensor) -> dict[str, Tensor]:
    backbone.model.zero_grad()
    loss.backward()
    found = {
        name: each.grad.clone() for name, each in backbone.parameters() if each.grad is not None
    }
    backbone.model.zero_grad()
    return found


@EACH
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_reference(
    tiny_llava: str, name: str, checkpointing: bool
) -> None:
    backbone, batch, skip = make_backbone(tiny_llava), make_batch(tiny_llava, "right"), CASES[name]
    expected_logits = reference_logits(backbone, batch, skip)
    wanted = batch.labels[:, 1:]
    loss = nn.functional.cross_entropy(
        expected_logits[:, :-1].flatten(0, 1), wanted.flatten(), reduction="sum", ignore_index=-100
    )
    expected = gradients(backbone, loss)

    if checkpointing:
        model: Any = backbone.model.train()
        enable = (
            getattr(model, "activation_checkpointing_enable", None)
            or model.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})
    with skipping(backbone, batch, skip):
        loss = answer_loss(backbone, batch).total.double()
    found = gradients(backbone, loss)  # behind the block

    assert any("projector" in each for each in found)
    for each, gradient in expected.items():
        if each in found:
            torch.testing.assert_close(found[each], gradient, rtol=1e-5, atol=1e-6, msg=each)
        else:
            assert not gradient.any(), each  # nothing came by
    assert {*found} <= {*expected}


@SIDES
def test_the_tokens_that_the_layer_before_changed_least_are_skipped(
    backbone: Backbone, tiny_llava: str, side: Any
) -> None:
    batch = make_batch(tiny_llava, side)
    skip = Skip(choice="lowest_change", start=2, stop=4, share=0.5)
    before, now = states(backbone, batch)[0], states(backbone, batch)[1]
    change = (now - before).norm(dim=-1) / before.norm(dim=-1)
    image = batch.spans[Segment.IMAGE]
    middle = torch.stack(
        [change[row][image[row]].median() for row in range(len(batch))]
    )  # the lower of the two
    chosen = image & (change <= middle[:, None])

    layer: Any = decoder_layers(backbone)[2]
    with skipping(backbone, batch, skip), rows_into(layer.mlp) as fed:
        left = states(backbone, batch)[2]

    _, attended = layer_inside(backbone, batch, 2)
    assert fed == [int((~chosen).sum())]
    torch.testing.assert_close(left[chosen], attended[chosen], rtol=0, atol=0)
