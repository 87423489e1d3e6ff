"""Token by token a model skips what it skips in the whole sequence, with a cache or without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.analysis.skipping.skipping import skipping
from lightning_mllm.batches import join_images
from lightning_mllm.evaluation import ExactMatch, Generation, Likelihood, PromptPass
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.types import LabelSet, Segment
from tests.support.decoders import generate, make_batch
from tests.support.questions import batches
from tests.support.skipping_cases import CASES, EACH, SIDES, logits, make_backbone, rows_into

SOME = pytest.mark.parametrize(
    "name", ["ffn", "attention, seen", "block, anew in each layer", "block of the prompt"]
)


@pytest.fixture
def backbone(tiny_llava: str) -> Backbone:
    return make_backbone(tiny_llava)


@EACH
@SIDES
def test_token_by_token_is_the_whole_sequence(
    backbone: Backbone, tiny_llava: str, name: str, side: Any
) -> None:
    batch, skip = make_batch(tiny_llava, side, numbers=(0, 1, 2)), CASES[name]
    prompts = batch.prompts()
    model: Any = backbone.model
    with skipping(backbone, batch, skip):
        whole = logits(backbone, batch)
    last = batch.spans[Segment.LAST].int().argmax(1)
    steps = 2
    answers = torch.stack(
        [batch.input_ids[row, at + 1 : at + 1 + steps] for row, at in enumerate(last.tolist())]
    )

    with torch.no_grad(), skipping(backbone, prompts, skip):
        output = model(**prompts.model_inputs(), use_cache=True)
        found = [output.logits[:, -1]]
        mask, places = prompts.attention_mask, prompts.attention_mask.sum(1, keepdim=True)
        for step in range(steps):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            output = model(
                input_ids=answers[:, step : step + 1],
                attention_mask=mask,
                position_ids=places + step,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
            found.append(output.logits[:, -1])

    for step, ours in enumerate(found):
        expected = torch.stack([whole[row, at + step] for row, at in enumerate(last.tolist())])
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


@EACH
@pytest.mark.parametrize("beams", [1, 2])
def test_generation_with_a_cache_is_generation_without(
    backbone: Backbone, tiny_llava: str, name: str, beams: int
) -> None:
    prompts = make_batch(tiny_llava).prompts()
    options = {"max_new_tokens": 5, "num_beams": beams, "eos_token_id": None}

    with skipping(backbone, prompts, CASES[name]):
        cached, anew = (
            generate(backbone, prompts, use_cache=use, **options) for use in (True, False)
        )

    assert torch.equal(cached, anew)


@SOME
def test_labels_are_scored_one_by_one_as_all_at_once(
    backbone: Backbone, tiny_llava: str, name: str
) -> None:
    batch = make_batch(tiny_llava)
    labels = LabelSet(("a", "b"), ((5, 6, 7), (8, 9)))
    tokenizer = AutoTokenizer.from_pretrained(tiny_llava)
    model: Any = backbone.model

    with skipping(backbone, batch, CASES[name]):
        found = [
            Likelihood(many).predict(model, tokenizer, batch, labels).scores for many in (1024, 1)
        ]
    prompts = batch.prompts()
    expected = torch.zeros(len(batch), 2, dtype=torch.float64)
    for column, ids in enumerate(labels.token_ids):
        answer = torch.tensor([ids]).expand(len(batch), -1)
        longer = torch.cat([prompts.input_ids, answer], dim=1)
        mask = torch.cat([prompts.attention_mask, torch.ones_like(answer)], dim=1)
        inputs = {
            "input_ids": longer,
            "attention_mask": mask,
            "position_ids": mask.cumsum(1) - mask,
            **join_images(prompts.images),
        }
        with torch.no_grad(), skipping(backbone, prompts, CASES[name]):
            output = model(**inputs, use_cache=False)
        logprobs = output.logits[:, -len(ids) - 1 : -1].log_softmax(-1)
        expected[:, column] = logprobs.gather(2, answer[..., None]).sum((1, 2))

    for scores in found:
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-9)


@SOME
def test_scorers_after_one_pass_skip_as_each_by_itself(
    backbone: Backbone, tiny_llava: str, name: str
) -> None:
    batch, labels = make_batch(tiny_llava), LabelSet(("a", "b"), ((5, 6, 7), (8, 9)))
    tokenizer = AutoTokenizer.from_pretrained(tiny_llava)
    generation = Generation(max_new_tokens=4)
    scorers = (generation, Likelihood(), Likelihood(1), generation)

    with skipping(backbone, batch, CASES[name]):
        asked = PromptPass(backbone.model, batch)
        shared = [scorer.classify(asked, tokenizer, labels) for scorer in scorers]
    for scorer, found in zip(scorers, shared, strict=True):
        with skipping(backbone, batch, CASES[name]):
            alone = scorer.predict(backbone.model, tokenizer, batch, labels)
        assert found.answers == alone.answers
        torch.testing.assert_close(found.scores, alone.scores, rtol=0, atol=1e-9)


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("computation", ["ffn", "block"])
def test_the_least_changed_are_the_same_with_and_without_a_cache(
    backbone: Backbone, tiny_llava: str, computation: Any, per_layer: bool
) -> None:
    prompts = make_batch(tiny_llava).prompts()
    skip = Skip(computation=computation, choice="lowest_change", start=1, per_layer=per_layer)

    for beams in (1, 2):
        with skipping(backbone, prompts, skip):
            cached, anew = (
                generate(
                    backbone,
                    prompts,
                    use_cache=use,
                    max_new_tokens=4,
                    num_beams=beams,
                    eos_token_id=None,
                )
                for use in (True, False)
            )
        assert torch.equal(cached, anew)


def test_scorers_of_a_batch_skip(tiny_llava: str) -> None:
    backbone, batch = make_backbone(tiny_llava, dtype=torch.float32), batches(tiny_llava, 6)[0]
    tokenizer = AutoTokenizer.from_pretrained(tiny_llava)
    skip = Skip(computation="block", share=1.0, tokens="all", phase="both", start=1, stop=2)
    layer: Any = decoder_layers(backbone)[1]

    with skipping(backbone, batch, skip), rows_into(layer.mlp) as fed:
        answers = ExactMatch().evaluate(backbone.model, tokenizer, batch)

    assert len(answers) == 6
    assert fed == []
