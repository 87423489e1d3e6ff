"""What a block does to a forward, and that it does nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mllm import testbed
from lightning_mllm.analysis import Block, Window, knockout
from lightning_mllm.analysis.core.positions import mask_positions
from lightning_mllm.batches import MultimodalBatch, TokenSpans
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Segment
from tests.conftest import TinyBuilder
from tests.support.decoders import (
    LAYERS,
    PAPER,
    count_hooks,
    everywhere,
    generate,
    last_logits,
    make_backbone,
    make_batch,
    shipped_backbone,
)

Setting = tuple[Backbone, MultimodalBatch]

TO_LAST, TO_QUESTION = PAPER[0], PAPER[3]
FAMILIES = ("llava", "llava_next", "testbed")


@torch.no_grad()
def states(backbone: Backbone, batch: MultimodalBatch) -> tuple[Tensor, ...]:
    output = backbone.model(**batch.model_inputs(), output_hidden_states=True, use_cache=False)
    return tuple(output.hidden_states)


@pytest.fixture(
    params=product(FAMILIES, ("sdpa", "exact", "eager"), ("left", "right")), ids="-".join
)
def setting(request: pytest.FixtureRequest, tiny_checkpoint: TinyBuilder) -> Setting:
    """Return models in float64, but for transformers' eager attention with a float32 softmax."""
    family, attention, side = request.param
    dtype = torch.float32 if attention == "eager" else torch.float64
    if family == "testbed":
        return shipped_backbone(attention, dtype), make_batch(testbed.checkpoint(), side)
    checkpoint = tiny_checkpoint(family, "vicuna")
    return make_backbone(checkpoint, attention, dtype), make_batch(checkpoint, side)


@pytest.fixture
def backbone(tiny_llava: str) -> Backbone:
    return make_backbone(tiny_llava)


@pytest.fixture
def prompts(tiny_llava: str) -> MultimodalBatch:
    return make_batch(tiny_llava).prompts()


def test_blocking_nothing_changes_nothing(setting: Setting) -> None:
    backbone, batch = setting
    clean = states(backbone, batch)
    real = batch.attention_mask.bool()
    tolerance = 1e-6 if clean[0].dtype == torch.float32 else 1e-12

    for blocks in (
        [],
        ["true option->last"],
        ["image->true option"],
        ["image object&image other->last"],
    ):
        with knockout(backbone, batch, [Block.parse(block) for block in blocks], everywhere()):
            blocked = states(backbone, batch)
        for a, b in zip(clean, blocked, strict=True):
            assert torch.allclose(a[real], b[real], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("image object->question", "none has 'image object'"),
        ("question->true option", "none has 'true option'"),
        ("image object->true option", "none has 'image object' or 'true option'"),
        (
            "last->image",
            "'last' comes after 'image' or is in other samples, so it is not attended to anyway",
        ),
    ],
)
def test_a_block_that_hides_nothing_is_told(
    backbone: Backbone,
    prompts: MultimodalBatch,
    block: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    none = torch.zeros_like(prompts.spans[Segment.IMAGE])
    boxless = TokenSpans({**prompts.spans.masks, Segment.IMAGE_OBJECT: none})

    with knockout(backbone, boxless, [TO_LAST, Block.parse(block)], everywhere()):
        pass

    assert [record.getMessage() for record in caplog.records] == [
        f"{block} blocks nothing in any of the 2 samples: {reason}."
    ]


def test_nothing_is_told_of_a_block_that_hides_something_in_one_sample(
    backbone: Backbone, prompts: MultimodalBatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = prompts.spans[Segment.IMAGE_OBJECT].clone()
    one[0] = False
    spans = TokenSpans({**prompts.spans.masks, Segment.IMAGE_OBJECT: one})

    with knockout(backbone, spans, [Block.parse("image object->question")], everywhere()):
        pass

    assert not caplog.records


def test_a_block_changes_no_row_before_its_first_target(setting: Setting) -> None:
    backbone, batch = setting
    with knockout(backbone, batch, [], everywhere()):
        clean = states(backbone, batch)

    for block in (TO_LAST, TO_QUESTION):
        with knockout(backbone, batch, [block], everywhere()):
            blocked = states(backbone, batch)
        target = mask_positions(batch.spans, block.target)
        before = batch.attention_mask.bool() & (target.cumsum(1) == 0)
        assert all(torch.equal(a[before], b[before]) for a, b in zip(clean, blocked, strict=True))
        assert not torch.isclose(clean[1][target], blocked[1][target]).all(dim=1).any()


def test_blocked_weights_are_zero_and_the_others_still_add_up_to_one(tiny_llava: str) -> None:
    backbone, batch = (
        make_backbone(tiny_llava, "eager", torch.float32),
        make_batch(tiny_llava, "right"),
    )
    block = replace(TO_QUESTION, heads=(1, 2))
    pairs = batch.spans[Segment.QUESTION][:, :, None] & batch.spans[Segment.IMAGE][:, None]

    with torch.no_grad(), knockout(backbone, batch, [block], Window(1, 1, 3)):
        weights = backbone.model(
            **batch.model_inputs(), output_attentions=True, use_cache=False
        ).attentions

    for layer, weight in enumerate(weights):
        for head in range(4):
            hidden = weight[:, head][pairs]
            assert (hidden == 0).all() if layer in (1, 2) and head in (1, 2) else (hidden > 0).all()
        assert torch.allclose(weight.sum(-1), torch.ones(()), atol=1e-6)


def test_all_heads_one_by_one_are_all_heads(backbone: Backbone, prompts: MultimodalBatch) -> None:
    found = []
    for heads in (None, (0, 1, 2, 3), (2,)):
        with knockout(backbone, prompts, [replace(TO_LAST, heads=heads)], everywhere()):
            found.append(last_logits(backbone, prompts))

    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-12)
    assert not torch.isclose(found[0], found[2]).all()


def test_heads_of_single_layers_are_those_heads_in_windows_of_these_layers(
    backbone: Backbone, prompts: MultimodalBatch
) -> None:
    together = replace(TO_LAST, places=((1, 2), (1, 3), (3, 0)))
    with knockout(backbone, prompts, [together], everywhere()):
        found = last_logits(backbone, prompts)
    with (
        knockout(backbone, prompts, [replace(TO_LAST, heads=(2, 3))], Window(1, 1, 2)),
        knockout(backbone, prompts, [replace(TO_LAST, heads=(0,))], Window(3, 3, 4)),
    ):
        expected = last_logits(backbone, prompts)
    clean = last_logits(backbone, prompts)
    with knockout(backbone, prompts, [together], Window(2, 2, 3)):  # none of them is there
        idle = last_logits(backbone, prompts)

    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert not torch.isclose(found, clean).all()
    assert torch.allclose(idle, clean, rtol=0, atol=1e-12)


def test_nested_blocks_add_up(backbone: Backbone, prompts: MultimodalBatch) -> None:
    with knockout(backbone, prompts, [TO_LAST, TO_QUESTION], everywhere()):
        together = last_logits(backbone, prompts)
    with (
        knockout(backbone, prompts, [TO_LAST], everywhere()),
        knockout(backbone, prompts, [TO_QUESTION], everywhere()),
    ):
        nested = last_logits(backbone, prompts)

    assert torch.equal(together, nested)


@pytest.mark.parametrize(
    ("whole", "parts"),
    [
        ("image+question->last", ["image->last", "question->last"]),
        ("image object->question+suffix", ["image object->question", "image object->suffix"]),
        ("image object+image other->question", ["image->question"]),
        ("image&image object->question[1]", ["image object->question[1]"]),
        ("image&image object+suffix->last", ["image object->last", "suffix->last"]),
    ],
)
def test_composed_positions_are_blocked_as_their_parts_are(
    backbone: Backbone, prompts: MultimodalBatch, whole: str, parts: list[str]
) -> None:
    found = []
    for blocks in ([whole], parts, []):
        with knockout(backbone, prompts, [Block.parse(block) for block in blocks], everywhere()):
            found.append(last_logits(backbone, prompts))

    assert torch.equal(found[0], found[1])
    assert not torch.isclose(found[0], found[2]).all()


def test_positions_are_unions_of_intersections() -> None:
    masks = {
        Segment.IMAGE_OBJECT: [[1, 1, 0, 0]],
        Segment.IMAGE_TILES: [[0, 1, 1, 0]],
        Segment.LAST: [[0, 0, 0, 1]],
    }
    spans = TokenSpans({segment: torch.tensor(mask).bool() for segment, mask in masks.items()})

    for side, expected in (
        ("last", [0, 0, 0, 1]),
        ("image object+last", [1, 1, 0, 1]),
        ("image object&image tiles", [0, 1, 0, 0]),
        ("image object&image tiles+last", [0, 1, 0, 1]),
        ("last+image tiles&image object", [0, 1, 0, 1]),
        ("image object&last", [0, 0, 0, 0]),
    ):
        assert mask_positions(spans, Block.parse(f"{side}->last").source).int().tolist() == [
            expected
        ]


def test_afterwards_the_model_is_as_it_was(backbone: Backbone, prompts: MultimodalBatch) -> None:
    clean = last_logits(backbone, prompts)
    hooks = count_hooks(backbone)  # transformers keeps some of its own from the first forward on

    with knockout(backbone, prompts, [TO_LAST], everywhere()):
        assert count_hooks(backbone) == hooks + LAYERS + 1  # and the decoder
        assert not torch.equal(last_logits(backbone, prompts), clean)
    assert count_hooks(backbone) == hooks
    assert torch.equal(last_logits(backbone, prompts), clean)

    with (
        pytest.raises(RuntimeError, match="inside"),
        knockout(backbone, prompts, [TO_LAST], everywhere()),
    ):
        raise RuntimeError("inside")
    assert count_hooks(backbone) == hooks
    assert torch.equal(last_logits(backbone, prompts), clean)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generation_is_that_of_full_forwards_without_a_cache(
    tiny_llava: str, attention: str
) -> None:
    backbone = make_backbone(tiny_llava, attention, torch.float32)
    prompts = make_batch(tiny_llava).prompts()
    length = prompts.input_ids.shape[1]
    options = {
        "max_new_tokens": 4,
        "min_new_tokens": 4,
        "output_logits": True,
        "return_dict_in_generate": True,
    }

    for block in (TO_LAST, TO_QUESTION):
        with knockout(backbone, prompts, [block], Window(1, 0, 3)):
            generated = generate(backbone, prompts, **options)
            grown = replace(
                prompts,
                input_ids=generated.sequences,
                attention_mask=_longer(prompts.attention_mask, 4),
                steps=_longer(prompts.steps, 4),
            )
            with torch.no_grad():
                logits = backbone.model(**grown.model_inputs(), use_cache=False).logits[
                    :, length - 1 : -1
                ]
        assert torch.allclose(torch.stack(generated.logits, dim=1), logits, rtol=0, atol=1e-4)
        with torch.no_grad():
            clean = backbone.model(**grown.model_inputs(), use_cache=False).logits[
                :, length - 1 : -1
            ]
        assert (
            (clean - logits).abs().amax(dim=(0, 2)) > 1e-3
        ).all()  # also where only keys and values were changed


def test_returned_sequences_and_beams_have_the_block_of_their_prompt(
    backbone: Backbone, prompts: MultimodalBatch
) -> None:
    options = {"max_new_tokens": 3, "num_beams": 2}
    alone = []
    with knockout(backbone, prompts, [TO_QUESTION], everywhere()):
        together = generate(backbone, prompts, **options)
    for one in prompts.split(1):
        with knockout(backbone, one, [TO_QUESTION], everywhere()):
            alone.append(generate(backbone, one, **options))

    assert torch.equal(together, torch.cat(alone))


def test_padding_on_either_side_and_answers_behind_the_prompt_do_not_matter(
    tiny_llava: str,
) -> None:
    backbone = make_backbone(tiny_llava)
    found = []
    for side in ("left", "right"):
        batch = make_batch(tiny_llava, side)
        for each in (batch, batch.prompts()):
            with torch.no_grad(), knockout(backbone, each.spans, [TO_QUESTION], Window(1, 1, 3)):
                found.append(backbone.model(**each.model_inputs()).logits[each.spans[Segment.LAST]])

    assert all(torch.allclose(found[0], other, rtol=0, atol=1e-12) for other in found[1:])


def test_under_autocast_the_mask_has_the_dtype_of_the_queries(tiny_llava: str) -> None:
    backbone, prompts = (
        make_backbone(tiny_llava, dtype=torch.float32),
        make_batch(tiny_llava).prompts(),
    )

    with (
        torch.autocast("cpu", torch.bfloat16),
        knockout(backbone, prompts, [TO_LAST], everywhere()),
    ):
        half = last_logits(backbone, prompts)
    with knockout(backbone, prompts, [TO_LAST], everywhere()):
        full = last_logits(backbone, prompts)

    assert torch.allclose(half.float(), full, atol=0.1 * float(full.abs().max()))


@pytest.mark.parametrize(
    "name", ["flash_attention_2", "flex_attention", "paged|sdpa", "kernels-community/flash-attn"]
)
def test_attention_that_takes_no_dense_mask_is_refused(
    backbone: Backbone, prompts: MultimodalBatch, name: str
) -> None:
    backbone.model.get_decoder().config._attn_implementation_internal = name

    with (
        pytest.raises(ConfigError, match=r"ignores or rejects.*attention=sdpa"),
        _block(backbone, prompts),
    ):
        pass


def test_a_compiled_model_is_refused(tiny_llava: str, prompts: MultimodalBatch) -> None:
    backbone = make_backbone(tiny_llava)
    backbone.model.compile(backend=print)  # is never called

    with pytest.raises(ConfigError, match="run on without the block"), _block(backbone, prompts):
        pass


def test_a_static_cache_is_refused(backbone: Backbone, prompts: MultimodalBatch) -> None:
    with pytest.raises(ConfigError, match="StaticCache does not keep"), _block(backbone, prompts):
        generate(backbone, prompts, max_new_tokens=2, cache_implementation="static")


def test_a_sliding_cache_is_refused(tiny_llava: str, prompts: MultimodalBatch) -> None:
    backbone = make_backbone(tiny_llava, decoder="mistral", sliding_window=16)

    with (
        pytest.raises(ConfigError, match="which a DynamicCache does not keep"),
        _block(backbone, prompts),
    ):
        generate(backbone, prompts, max_new_tokens=2)


def test_a_row_that_would_see_nothing_is_refused(
    backbone: Backbone, prompts: MultimodalBatch
) -> None:
    everything = TokenSpans({**prompts.spans.masks, Segment.SYSTEM: prompts.attention_mask.bool()})

    with (
        pytest.raises(ConfigError, match="system->last hides everything"),
        knockout(backbone, everything, [Block.parse("system->last")], everywhere()),
    ):
        last_logits(backbone, prompts)


def test_another_batch_than_the_models_is_refused(
    backbone: Backbone, prompts: MultimodalBatch
) -> None:
    with (
        pytest.raises(ConfigError, match=r"for 2 sequences of .* is run on 1 of"),
        _block(backbone, prompts),
    ):
        last_logits(backbone, prompts.take([0]))


def test_layers_heads_and_segments_that_are_not_there_are_refused(
    backbone: Backbone, prompts: MultimodalBatch
) -> None:
    lacking = TokenSpans({Segment.LAST: prompts.spans[Segment.LAST]})
    for spans, block, window, error, message in (
        (prompts, TO_LAST, Window(3, 2, 5), ConfigError, "the decoder has the layers 0 to 3"),
        (
            prompts,
            replace(TO_LAST, heads=(4,)),
            everywhere(),
            ConfigError,
            "each layer has the heads 0 to 3",
        ),
        (
            prompts,
            replace(TO_LAST, places=((4, 0),)),
            everywhere(),
            ConfigError,
            "there are layers 0 to 3",
        ),
        (
            prompts,
            replace(TO_LAST, heads=()),
            everywhere(),
            ConfigError,
            "names heads that don't exist",
        ),
        (
            lacking,
            TO_LAST,
            everywhere(),
            DataError,
            "does not say where 'question' is; it has last",
        ),
        (
            lacking,
            Block.parse("last+suffix->last"),
            everywhere(),
            DataError,
            "where 'suffix' is; it has last",
        ),
    ):
        with pytest.raises(error, match=message), knockout(backbone, spans, [block], window):
            pass


def _block(backbone: Backbone, prompts: MultimodalBatch) -> Any:
    return knockout(backbone, prompts, [TO_LAST], everywhere())


def _longer(mask: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(mask, (0, count), value=1)
