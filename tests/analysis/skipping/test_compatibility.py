"""What skipping does not depend on, that it leaves nothing behind, and where it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lightning_mllm.analysis import Block, knockout
from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.analysis.skipping.skipping import skipping
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.types import Segment
from tests.support.decoders import count_hooks, everywhere, generate, make_batch
from tests.support.skipping_cases import CASES, EACH, logits, make_backbone, rows_into


@pytest.fixture
def backbone(tiny_llava: str) -> Backbone:
    return make_backbone(tiny_llava)


@pytest.mark.parametrize("name", [*CASES, "lowest change"])
def test_neither_padding_nor_the_rest_of_the_batch_matter(
    backbone: Backbone, tiny_llava: str, name: str
) -> None:
    skip = CASES.get(name) or Skip(choice="lowest_change", start=1)
    whole = make_batch(tiny_llava, "left", numbers=(0, 1, 2))
    with skipping(backbone, whole, skip):
        expected = logits(backbone, whole)[whole.spans[Segment.LAST]]

    for numbers in ((1,), (2, 1), (1, 0)):
        for side in ("left", "right"):
            batch = make_batch(tiny_llava, side, numbers)
            with skipping(backbone, batch, skip):
                found = logits(backbone, batch)[batch.spans[Segment.LAST]]
            torch.testing.assert_close(found, expected[list(numbers)], rtol=0, atol=1e-9)


def test_a_knockout_around_it_is_still_there(backbone: Backbone, tiny_llava: str) -> None:
    batch = make_batch(tiny_llava).prompts()
    block, skip = (
        Block.parse("image->last[1]"),
        Skip(computation="attention", share=1.0, tokens="perceptual"),
    )

    with knockout(backbone, batch, [block], everywhere()), skipping(backbone, batch, skip):
        around = logits(backbone, batch)
    with skipping(backbone, batch, skip):
        with knockout(backbone, batch, [block], everywhere()):
            inside = logits(backbone, batch)
        alone = logits(backbone, batch)

    real = batch.attention_mask.bool()
    assert torch.equal(around[real], inside[real])
    torch.testing.assert_close(alone[real], inside[real])  # what attention skips is hidden already
    with skipping(backbone, batch, replace(skip, visible=True)):
        seen = logits(backbone, batch)
        with knockout(backbone, batch, [block], everywhere()):
            blocked = logits(backbone, batch)
    assert not torch.isclose(seen[:, -1], blocked[:, -1]).all()


@EACH
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(
    backbone: Backbone, tiny_llava: str, name: str, fails: bool
) -> None:
    batch = make_batch(tiny_llava)
    before, hooks = logits(backbone, batch), count_hooks(backbone)

    if fails:
        with pytest.raises(RuntimeError, match="inside"), skipping(backbone, batch, CASES[name]):
            logits(backbone, batch)
            raise RuntimeError("inside")
    else:
        with skipping(backbone, batch, CASES[name]):
            logits(backbone, batch)

    assert torch.equal(logits(backbone, batch), before)
    assert count_hooks(backbone) == hooks
    assert not any("forward" in layer.__dict__ for layer in decoder_layers(backbone))


def test_different_layers_can_skip_different_things(backbone: Backbone, tiny_llava: str) -> None:
    batch = make_batch(tiny_llava)
    ffn, block = Skip(share=0.5, stop=2), Skip(computation="block", share=0.5, start=3)
    layers: Any = decoder_layers(backbone)

    with skipping(backbone, batch, ffn), skipping(backbone, batch, block):
        with rows_into(layers[1].mlp) as first, rows_into(layers[3].self_attn) as last:
            logits(backbone, batch)
        with (
            pytest.raises(ConfigError, match=r"Layer 0 is computed by another.*different layers"),
            skipping(backbone, batch, ffn),
        ):
            raise AssertionError

    rows = batch.input_ids.numel()
    assert (first[0] < rows, last[0] < rows) == (True, True)


def _compile(backbone: Backbone) -> None:
    backbone.model.compile(backend="eager")


@pytest.mark.parametrize(
    ("make", "skip", "message"),
    [
        (_compile, Skip(), r"The model is compiled"),
        (lambda backbone: backbone.model.set_attn_implementation({"text_config": "exact"}),
         Skip(computation="block"), r"which 'exact' may ignore or reject"),
        (lambda backbone: None, Skip(start=9), r"not a range of layers"),
        (lambda backbone: None, Skip(choice="lowest_change"), r"layer 0 has none"),
    ],
)  # fmt: skip
def test_models_that_can_not_skip_are_refused_at_once(
    backbone: Backbone, tiny_llava: str, make: Callable[[Backbone], None], skip: Skip, message: str
) -> None:
    make(backbone)

    with (
        pytest.raises(ConfigError, match=message),
        skipping(backbone, make_batch(tiny_llava), skip),
    ):
        raise AssertionError


def with_text_model(checkpoint: str, kind: str, **options: Any) -> Backbone:
    """Return a model with another kind of LLM than Llama, Mistral or Qwen2, with random norms."""
    config = AutoConfig.from_pretrained(checkpoint)
    text = config.text_config
    small = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    ids = {
        "vocab_size": text.vocab_size,
        "pad_token_id": text.pad_token_id,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config.text_config = AutoConfig.for_model(
        kind, **{**small, "num_key_value_heads": 4, **ids, **options}
    )
    return Backbone(AutoModelForImageTextToText.from_config(config).eval())


class _Halved(LlamaDecoderLayer):
    """A layer that halves what it returns."""

    def forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        return super().forward(*arguments, **keywords) / 2


def test_layers_with_other_parts_are_refused(tiny_llava: str) -> None:
    backbone = with_text_model(tiny_llava, "gemma2", head_dim=16)

    with (
        pytest.raises(ConfigError, match=r"is a Gemma2DecoderLayer of .*pre_feedforward_layernorm"),
        skipping(backbone, make_batch(tiny_llava), Skip()),
    ):
        raise AssertionError


def test_layers_that_compute_something_else_are_refused(
    backbone: Backbone, tiny_llava: str
) -> None:
    decoder_layers(backbone)[0].__class__ = _Halved

    with (
        pytest.raises(ConfigError, match=r"a _Halved has the parts .* computes something else"),
        skipping(backbone, make_batch(tiny_llava), Skip()),
    ):
        raise AssertionError


@torch.no_grad()
def test_layers_that_scale_what_they_add_skip_as_others(tiny_llava: str) -> None:
    backbone = with_text_model(tiny_llava, "granite", residual_multiplier=0.5)
    batch = make_batch(tiny_llava)
    with skipping(backbone, batch, Skip(share=1.0, tokens="all", phase="both")):
        found = logits(backbone, batch)

    for layer in decoder_layers(backbone):
        layer.mlp.down_proj.weight.zero_()  # type: ignore[union-attr,operator]

    torch.testing.assert_close(found, logits(backbone, batch))


@pytest.mark.parametrize(
    ("kind", "options", "layer"),
    [
        ("qwen3", {"head_dim": 16}, 1),  # its keys have a norm of their own
        ("smollm3", {"no_rope_layer_interval": 3}, 2),  # its third layer turns no keys
        ("glm", {"head_dim": 16}, 1),  # it turns only half of each
    ],
)
@pytest.mark.parametrize("computation", ["attention", "block"])
def test_keys_that_are_made_otherwise_are_not_seen_where_attention_is_skipped(
    tiny_llava: str, kind: str, options: Any, layer: int, computation: Any
) -> None:
    backbone, batch = with_text_model(tiny_llava, kind, **options), make_batch(tiny_llava)
    skip = Skip(computation=computation, share=0.5, visible=True, start=1)
    message = rf"layer {layer}, a \w+, makes in another way than Llama.*Set visible: false"

    with pytest.raises(ConfigError, match=message), skipping(backbone, batch, skip):
        raise AssertionError

    with skipping(backbone, batch, replace(skip, visible=False)):
        assert logits(backbone, batch).isfinite().all()


def test_samples_in_another_order_are_refused(backbone: Backbone, tiny_llava: str) -> None:
    batch, other = (make_batch(tiny_llava, numbers=numbers) for numbers in ((0, 1), (1, 0)))
    message = r"The prompt of sample 's1' has \d+ tokens, but in its place the model is run on \d+"

    with skipping(backbone, batch, Skip()), pytest.raises(ConfigError, match=message):
        logits(backbone, other)


def test_other_samples_than_those_of_the_batch_are_refused(
    backbone: Backbone, tiny_llava: str
) -> None:
    batch = make_batch(tiny_llava, numbers=(0, 1, 2))

    with (
        skipping(backbone, batch, Skip()),
        pytest.raises(ConfigError, match=r"given 3 samples .* is run on 2 seq"),
    ):
        logits(backbone, batch.take([0, 1]))


def test_a_cache_that_does_not_keep_its_places_is_refused(
    backbone: Backbone, tiny_llava: str
) -> None:
    prompts = make_batch(tiny_llava).prompts()

    with (
        skipping(backbone, prompts, Skip()),
        pytest.raises(ConfigError, match=r"which a StaticCache does not keep"),
    ):
        generate(
            backbone, prompts, max_new_tokens=2, cache_implementation="static", disable_compile=True
        )


def test_ranking_needs_the_prompts_in_one_piece(backbone: Backbone, tiny_llava: str) -> None:
    prompts = make_batch(tiny_llava, numbers=(0,)).prompts()
    skip, model = Skip(choice="lowest_change", start=1), backbone.model
    whole: Any = prompts.model_inputs()
    with torch.no_grad():
        cache = model(**whole, use_cache=True).past_key_values
    more = {
        "input_ids": torch.tensor([[5]]),
        "attention_mask": torch.ones(1, prompts.input_ids.shape[1] + 1).long(),
    }

    with (
        skipping(backbone, prompts, skip),
        pytest.raises(ConfigError, match=r"needs the prompts' own pass"),
    ):
        model(**more, past_key_values=cache, use_cache=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"share": 0.001}, True),
        ({"share": 0.001, "phase": "both"}, True),  # no image is generated
        ({"share": 0.001, "tokens": "all", "phase": "both"}, False),
        ({"share": 0.0}, False),
        ({"share": 0.5}, False),
    ],
)
def test_a_skip_of_no_token_is_told(
    backbone: Backbone, tiny_llava: str, options: Any, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with skipping(backbone, make_batch(tiny_llava), Skip(**options)):
        pass

    message = (
        "Nothing is skipped in any of the 2 samples: a share of 0.001 of their perceptual tokens "
        "is less than one"
    )
    assert (message in caplog.text) == told == bool(caplog.records)
