"""What is dropped is as if it had never been there, from a layer on; and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mllm.analysis.core.windows import Window
from lightning_mllm.analysis.dropping.drop import Drop
from lightning_mllm.analysis.dropping.dropping import dropping
from lightning_mllm.analysis.forward.hidden_keys import HiddenKeys
from lightning_mllm.analysis.knockout.block import Block
from lightning_mllm.analysis.knockout.mask import knockout, mask_keys
from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.analysis.skipping.skipping import skipping
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import hook_inputs
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.models.loss import answer_loss
from lightning_mllm.types import Segment
from tests.support.decoders import (
    LAYERS,
    count_hooks,
    everywhere,
    generate,
    make_backbone,
    make_batch,
)
from tests.support.skipping_cases import SIDES, logits, states

FIRST = 2
DROPS = {
    "attention": Drop(),
    "least attention": Drop(share=0.75, keep="least"),
    "norm": Drop(choice="norm"),
    "similarity": Drop(choice="similarity", keep="least", share=0.3),
    "stride": Drop(choice="stride"),
    "random": Drop(choice="random", seed=1),
    "all": Drop(share=1.0, choice="stride"),
}
EACH = pytest.mark.parametrize("name", DROPS)


@pytest.fixture
def backbone(tiny_llava: str) -> Backbone:
    return make_backbone(tiny_llava)


def find_left(backbone: Backbone, batch: MultimodalBatch, drop: Drop) -> Tensor:
    """The positions of a batch that are left, (batch, sequence): those that layers change."""
    with dropping(backbone, batch, drop):
        found = states(backbone, batch)
    moved: Tensor = (found[FIRST] != found[FIRST - 1]).any(-1)
    return moved & batch.attention_mask.bool()


def window(start: int = FIRST) -> Window:
    return Window(start, start, LAYERS)


def hide(backbone: Backbone, batch: MultimodalBatch, left: Tensor) -> Any:
    """Hide dropped positions from all others, in the layers behind the drop."""
    gone = batch.attention_mask.bool() & ~left
    return mask_keys(backbone, [HiddenKeys(gone, ~gone)], window())


@EACH
@SIDES
def test_dropped_tokens_are_hidden_from_all_others(
    backbone: Backbone, tiny_llava: str, name: str, side: Any
) -> None:
    batch = make_batch(tiny_llava, side, numbers=(0, 1, 2))
    left = find_left(backbone, batch, DROPS[name])

    with dropping(backbone, batch, DROPS[name]):
        found = states(backbone, batch)

    with hide(backbone, batch, left):
        expected = states(backbone, batch)
    assert not torch.isclose(found[-1][left], states(backbone, batch)[-1][left]).all()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[left], theirs[left], rtol=0, atol=1e-10)


@EACH
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropping_no_token_is_the_model_itself_to_the_bit(
    tiny_llava: str, name: str, attention: str
) -> None:
    backbone, batch = make_backbone(tiny_llava, attention, torch.float32), make_batch(tiny_llava)

    with dropping(backbone, batch, replace(DROPS[name], share=0.0)):
        found = logits(backbone, batch)

    assert torch.equal(found, logits(backbone, batch))


@EACH
def test_as_many_visual_tokens_are_dropped_as_are_asked_for(
    backbone: Backbone, tiny_llava: str, name: str
) -> None:
    batch, drop = make_batch(tiny_llava), DROPS[name]
    image = batch.spans[Segment.IMAGE]

    left = find_left(backbone, batch, drop)

    expected = (image.sum(1) * (1 - drop.share)).round().long()
    assert torch.equal((left & image).sum(1), expected)
    assert (left | image)[batch.attention_mask.bool()].all()


@SIDES
def test_those_stay_to_which_the_last_row_attends_most(tiny_llava: str, side: Any) -> None:
    backbone = make_backbone(tiny_llava, "eager", torch.float32)
    batch = make_batch(tiny_llava, side)
    with torch.no_grad():
        every = backbone.model(**batch.model_inputs(), output_attentions=True).attentions
    weights = every[FIRST - 1].mean(1)  # of the heads
    last = batch.spans[Segment.LAST].int().argmax(1)

    left = find_left(backbone, batch, Drop())

    for row, at in enumerate(last.tolist()):
        image = batch.spans[Segment.IMAGE][row].nonzero()[:, 0]
        ranked = image[weights[row, at, image].argsort(descending=True)]
        expected = ranked[: len(image) // 2].sort().values
        assert left[row, image].nonzero()[:, 0].tolist() == (
            torch.isin(image, expected).nonzero()[:, 0].tolist()
        )


@EACH
def test_a_sample_in_a_padded_batch_is_the_sample_alone(
    backbone: Backbone, tiny_llava: str, name: str
) -> None:
    batch = make_batch(tiny_llava, "left", numbers=(0, 1, 2))
    with dropping(backbone, batch, DROPS[name]):
        found = logits(backbone, batch)

    for row, number in enumerate((0, 1, 2)):
        alone = make_batch(tiny_llava, "left", numbers=(number,))
        with dropping(backbone, alone, DROPS[name]):
            expected = logits(backbone, alone)[0]
        real = batch.attention_mask[row].bool() & ~batch.spans[Segment.IMAGE][row]
        text = ~alone.spans[Segment.IMAGE][0]
        torch.testing.assert_close(found[row, real], expected[text], rtol=0, atol=1e-10)


@EACH
def test_token_by_token_is_the_whole_sequence(
    backbone: Backbone, tiny_llava: str, name: str
) -> None:
    batch, drop, steps = make_batch(tiny_llava, "right"), DROPS[name], 2
    prompts, model = batch.prompts(), backbone.model
    with dropping(backbone, batch, drop):
        whole = logits(backbone, batch)
    last = batch.spans[Segment.LAST].int().argmax(1)
    rows = torch.arange(len(batch))

    with torch.no_grad(), dropping(backbone, prompts, drop):
        output: Any = model(**prompts.model_inputs(), use_cache=True)
        found, mask = [output.logits[:, -1]], prompts.attention_mask
        for step in range(steps):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            output = model(
                input_ids=batch.input_ids[rows, last + 1 + step][:, None],
                attention_mask=mask,
                position_ids=prompts.attention_mask.sum(1, keepdim=True) + step,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
            found.append(output.logits[:, -1])

    for step, ours in enumerate(found):
        torch.testing.assert_close(ours, whole[rows, last + step], rtol=0, atol=1e-9)
    image, full = int(prompts.spans[Segment.IMAGE][0].sum()), prompts.input_ids.shape[1] + steps
    short = full - image + round(image * (1 - drop.share))
    lengths = [output.past_key_values.get_seq_length(layer) for layer in range(LAYERS)]
    assert lengths == [full] * FIRST + [short] * (LAYERS - FIRST)


@EACH
@pytest.mark.parametrize("beams", [1, 2])
def test_generation_with_a_cache_is_generation_without(
    backbone: Backbone, tiny_llava: str, name: str, beams: int
) -> None:
    prompts = make_batch(tiny_llava).prompts()
    options = {"max_new_tokens": 5, "num_beams": beams, "eos_token_id": None}

    with dropping(backbone, prompts, DROPS[name]):
        cached, anew = (
            generate(backbone, prompts, use_cache=use, **options) for use in (True, False)
        )

    assert torch.equal(cached, anew)


@pytest.mark.parametrize("inside", [True, False])
def test_knockouts_add_to_it_in_either_order(
    backbone: Backbone, tiny_llava: str, inside: bool
) -> None:
    batch = make_batch(tiny_llava).prompts()
    drop, blocks = DROPS["random"], [Block.parse("question->last"), Block.parse("image->last")]
    left = find_left(backbone, batch, drop)
    edits = [dropping(backbone, batch, drop), knockout(backbone, batch, blocks, everywhere())]
    first, second = edits if inside else edits[::-1]

    with first, second:
        found = logits(backbone, batch)
        cached, anew = (
            generate(backbone, batch, use_cache=use, max_new_tokens=3, eos_token_id=None)
            for use in (True, False)
        )

    with hide(backbone, batch, left), knockout(backbone, batch, blocks, everywhere()):
        expected = logits(backbone, batch)
    torch.testing.assert_close(found[left], expected[left], rtol=0, atol=1e-10)
    assert torch.equal(cached, anew)


def test_skips_are_for_other_layers(backbone: Backbone, tiny_llava: str) -> None:
    batch, drop = make_batch(tiny_llava), DROPS["stride"]
    before = Skip(share=0.5, start=0, stop=FIRST)
    with dropping(backbone, batch, drop), skipping(backbone, batch, before):
        inside = logits(backbone, batch)
    with skipping(backbone, batch, before), dropping(backbone, batch, drop):
        assert torch.equal(logits(backbone, batch), inside)

    everywhere_too = Skip(share=0.5)
    with (
        skipping(backbone, batch, everywhere_too),
        pytest.raises(ConfigError, match="Layer 2 is computed by another edit already"),
        dropping(backbone, batch, drop),
    ):
        pass
    with (
        dropping(backbone, batch, drop),
        pytest.raises(ConfigError, match="Layer 2 is computed by another edit already"),
        skipping(backbone, batch, everywhere_too),
    ):
        pass


def test_nothing_is_left_of_it_afterwards(backbone: Backbone, tiny_llava: str) -> None:
    batch = make_batch(tiny_llava)
    expected = logits(backbone, batch)
    before = count_hooks(backbone)

    with pytest.raises(ZeroDivisionError), dropping(backbone, batch, Drop()):
        logits(backbone, batch)
        raise ZeroDivisionError

    assert count_hooks(backbone) == before
    assert not any("forward" in layer.__dict__ for layer in decoder_layers(backbone))
    assert torch.equal(logits(backbone, batch), expected)


def test_dropped_tokens_work_is_not_done(backbone: Backbone, tiny_llava: str) -> None:
    batch = make_batch(tiny_llava, numbers=(0,))
    rows: dict[int, int] = {}
    layers = {index: layer.mlp for index, layer in enumerate(decoder_layers(backbone))}

    with (
        dropping(backbone, batch, Drop(share=1.0)),
        hook_inputs(layers, lambda index, fed: rows.update({index: fed.shape[1]})),  # type: ignore[arg-type]
    ):
        logits(backbone, batch)

    full = batch.input_ids.shape[1]
    kept = full - int(batch.spans[Segment.IMAGE].sum())
    assert rows == {0: full, 1: full, 2: kept, 3: kept}


def test_gradients_reach_what_is_left_and_what_was_before(
    backbone: Backbone, tiny_llava: str
) -> None:
    batch = make_batch(tiny_llava)

    with dropping(backbone, batch, Drop(share=1.0)):
        answer_loss(backbone, batch).total.backward()

    for layer in decoder_layers(backbone):
        weight: Any = layer.mlp.up_proj.weight  # type: ignore[union-attr]
        assert weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 0}, "Drop.layer is 0, but the first layer has to see all tokens"),
        ({"layer": LAYERS}, "is not a range of layers"),
        ({"share": 1.5}, "Drop.share must lie between 0 and 1, not 1.5"),
        ({"choice": "best"}, "Drop.choice is 'best'; it can be attention, norm"),
        ({"choice": "random", "keep": "least"}, "ranks no tokens, so there are no least ones"),
        ({"seed": -1}, "Drop.seed must be at least 0"),
    ],
)
def test_what_can_not_be_dropped_is_refused(
    backbone: Backbone, tiny_llava: str, options: dict[str, Any], message: str
) -> None:
    with (
        pytest.raises(ConfigError, match=message),
        dropping(backbone, make_batch(tiny_llava), Drop(**options)),
    ):
        pass


def test_other_samples_and_foreign_caches_are_refused(backbone: Backbone, tiny_llava: str) -> None:
    batch = make_batch(tiny_llava).prompts()
    with torch.no_grad():
        output: Any = backbone.model(**batch.model_inputs(), use_cache=True)
    later = {
        "input_ids": batch.input_ids[:, -1:],
        "attention_mask": torch.cat([batch.attention_mask, batch.attention_mask[:, :1]], dim=1),
        "past_key_values": output.past_key_values,
    }

    with dropping(backbone, batch, Drop()):
        with pytest.raises(ConfigError, match="Run the prompts within the `with` block too"):
            backbone.model(**later)
        with pytest.raises(ConfigError, match="Give `dropping` the batch that the model gets"):
            logits(backbone, batch.take([0]))


def test_a_share_of_less_than_half_a_token_is_reported(
    backbone: Backbone, tiny_llava: str, caplog: pytest.LogCaptureFixture
) -> None:
    with dropping(backbone, make_batch(tiny_llava), Drop(share=0.001)):
        pass

    assert "Nothing is dropped in any of the 2 samples" in caplog.text
