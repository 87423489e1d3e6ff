"""Skipping where positions have axes or the FFN is a mixture; and where it is refused."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mllm.analysis.forward.decoder_costs import DecoderPassCosts
from lightning_mllm.analysis.forward.stepwise import StepwiseStream
from lightning_mllm.analysis.skipping.experiment import ComputationSkipping
from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.analysis.skipping.skipping import skipped, skipping
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import Likelihood
from lightning_mllm.models.hooks import hook_inputs
from lightning_mllm.models.layers import (
    decoder_layers,
    layers_and_norm,
    run_layers_uncompiled,
)
from lightning_mllm.types import LabelSet, Segment
from tests.conftest import FamilyBuilder
from tests.support.decoders import generate
from tests.support.family_questions import ask, load
from tests.support.questions import tokenizer

LABELS = LabelSet(("a", "b"), ((5, 6, 7), (8, 9)))
LATE = Skip(phase="both", tokens="all", choice="strided", computation="block")


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "qwen3_vl_moe"])
@torch.no_grad()
def test_labels_are_scored_one_by_one_as_all_at_once(tiny_family: FamilyBuilder, name: str) -> None:
    """Positions stay behind the tokens' numbers, by which tokens are chosen."""
    checkpoint = tiny_family(name)
    backbone, batch = load(checkpoint, dtype=torch.float32), ask(checkpoint, "right")
    prompts, model = batch.prompts(), backbone.model
    inputs, positions = prompts.model_inputs(), prompts.position_ids
    after = prompts.steps.sum(1, keepdim=True)

    with skipping(backbone, batch, LATE):
        found = Likelihood().predict(model, tokenizer(checkpoint), batch, LABELS).scores

    assert found is not None
    expected = torch.zeros_like(found)
    for column, ids in enumerate(LABELS.token_ids):
        answer = torch.tensor([ids]).expand(len(batch), -1)
        later = (after + torch.arange(len(ids))).expand(3, -1, -1)
        longer = {
            **inputs,
            "input_ids": torch.cat([prompts.input_ids, answer], dim=1),
            "attention_mask": torch.cat([prompts.attention_mask, torch.ones_like(answer)], dim=1),
            "position_ids": torch.cat([positions, later], dim=2),
        }
        with skipping(backbone, prompts, LATE):
            logits = model(**longer, use_cache=False).logits
        logprobs = logits[:, -len(ids) - 1 : -1].log_softmax(-1)
        expected[:, column] = logprobs.gather(2, answer[..., None]).sum((1, 2))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (after[:, 0] < prompts.attention_mask.sum(1)).all()


@torch.no_grad()
def test_layers_side_by_side_keep_what_is_added_between_them(tiny_family: FamilyBuilder) -> None:
    """DeepStack's features are no work of the first layer, so they are not halved."""
    checkpoint = tiny_family("qwen3_vl")
    backbone, batch = load(checkpoint), ask(checkpoint)
    stream = StepwiseStream.of(backbone, batch, batch.attention_mask.bool())
    outputs = []
    for index, layer in enumerate(decoder_layers(backbone)[:2]):
        outputs.append(layer.forward(stream.hidden, **stream.arguments[index]))
    entering: dict[int, Tensor] = {}
    skip = Skip(computation="parallel_blocks", share=1.0, tokens="all", phase="both", interval=2)

    with (
        skipping(backbone, batch, skip),
        hook_inputs({0: layers_and_norm(backbone)[2]}, entering.__setitem__),
    ):
        run_layers_uncompiled(backbone, batch)

    expected = (outputs[0] + outputs[1]) / 2 + stream.between[0]
    real = batch.attention_mask.bool()
    torch.testing.assert_close(entering[0][real], expected[real])
    assert stream.between[0][batch.spans[Segment.IMAGE]].abs().max() > 0.01


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl_moe", "granite_vision"])
def test_generating_token_by_token_is_running_all_again(
    tiny_family: FamilyBuilder, name: str
) -> None:
    backbone, batch = load(tiny_family(name), dtype=torch.float32), ask(tiny_family(name))
    options = {"max_new_tokens": 4, "min_new_tokens": 4}

    with skipping(backbone, batch, LATE):
        found = [
            generate(backbone, batch.prompts(), use_cache=cached, **options)
            for cached in (True, False)
        ]

    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl_moe"])
def test_a_sample_of_a_batch_costs_what_it_costs_alone_and_less_with_skips(
    tiny_family: FamilyBuilder, name: str
) -> None:
    checkpoint = tiny_family(name)
    backbone, batch = load(checkpoint, dtype=torch.float32), ask(checkpoint, "right")
    own = DecoderPassCosts.of(backbone, ask(checkpoint, "left", count=1), skipped)

    padded = DecoderPassCosts.of(backbone, batch, skipped).alone(0)

    assert torch.equal(padded.position_ids, own.position_ids)
    for skip in (None, Skip(), LATE):
        assert padded.flops(backbone, skip) == own.flops(backbone, skip)
    assert own.flops(backbone, LATE) < own.flops(backbone, Skip()) < own.flops(backbone)


@pytest.mark.parametrize("name", ["granite_vision", "qwen2_vl", "qwen3_vl_moe"])
@torch.no_grad()
def test_skipping_the_ffn_of_all_tokens_is_an_ffn_that_adds_nothing(
    tiny_family: FamilyBuilder, name: str
) -> None:
    backbone, batch = load(tiny_family(name), dtype=torch.float32), ask(tiny_family(name))
    inputs = batch.model_inputs()
    with skipping(backbone, batch, Skip(share=1.0, tokens="all", phase="both")):
        found = backbone.model(**inputs).logits

    for weight in chain.from_iterable(
        layer.mlp.parameters()  # type: ignore[union-attr]
        for layer in decoder_layers(backbone)
    ):
        weight.zero_()

    real = batch.attention_mask.bool()
    torch.testing.assert_close(found[real], backbone.model(**inputs).logits[real])


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("gemma3", {}, "its tokens also see later ones"),
        ("gemma4", {}, "is a Gemma4TextDecoderLayer of act_fn, input_layernorm"),
        ("paligemma", {}, "its tokens also see later ones"),
        ("aya_vision", {}, "is a Cohere2DecoderLayer of input_layernorm, mlp, self_attn"),
        ("qwen3_5", {}, "is a Qwen3_5DecoderLayer of input_layernorm, linear_attn"),
        ("qwen3_vl", {"visible": True, "computation": "attention"}, "with a norm of its own"),
    ],
)
def test_families_of_which_it_can_not_be_said_are_refused_by_name(
    tiny_family: FamilyBuilder, name: str, options: dict[str, Any], reason: str
) -> None:
    backbone = load(tiny_family(name), dtype=torch.float32)
    skip = Skip(**options)
    analysis = ComputationSkipping(skip=skip, computations=[skip.computation])

    with pytest.raises(ConfigError, match=rf"Skip.* does not work with {name}: .*{reason}.*Use a"):
        analysis.check_model(backbone)
