"""Whatever follows the one pass over a batch is what follows its prompts alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Collator, ConversationPrompt, load_processor
from lightning_mllm.evaluation import Generation, Likelihood, Scorer
from lightning_mllm.evaluation.decoding import decode_answers
from lightning_mllm.evaluation.prompt_pass import PromptPass
from lightning_mllm.models.loss import answer_loss
from lightning_mllm.models.tiny import TinyFamily, build_tiny_checkpoint
from lightning_mllm.types import LabelSet, Sample, Segment, Turn
from tests.evaluation.conftest import Scene
from tests.support.feature_samples import picture
from tests.support.tiny_families import open_backbone


@contextmanager
def counting(model: PreTrainedModel) -> Iterator[list[int]]:
    """Note how many positions each forward of the model runs."""
    lengths: list[int] = []
    handle = model.base_model.register_forward_hook(
        lambda _, __, inputs, ___: lengths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    yield lengths
    handle.remove()


@torch.no_grad()
def test_scores_and_answers_after_the_loss_are_those_of_the_prompts(scene: Scene) -> None:
    model, batch = scene.model, scene.batch
    asked = PromptPass(model, batch, with_answers=True)
    scorers = (Generation(max_new_tokens=5), Likelihood(), Likelihood(4), Generation())

    assert torch.equal(
        asked.hidden, model.base_model(**batch.model_inputs(), use_cache=False).last_hidden_state
    )
    for scorer in scorers:  # each leaves the pass as it was
        after = scorer.classify(asked, scene.tokenizer, scene.labels)
        alone = scorer.predict(model, scene.tokenizer, batch, scene.labels)
        assert after.answers == alone.answers
        assert torch.equal(after.predicted, alone.predicted)
        if alone.scores is not None:
            torch.testing.assert_close(after.scores, alone.scores, rtol=0, atol=1e-5)


def test_other_reference_answers_change_no_bit_of_what_is_scored_and_decoded(scene: Scene) -> None:
    assert_references_are_not_seen(scene)


@pytest.mark.slow
def test_nor_do_they_in_8_bit_whose_rounding_depends_on_all_tokens(
    llava: Scene, checkpoints: dict[TinyFamily, Path]
) -> None:
    pytest.importorskip("bitsandbytes")
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoints["llava"],
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_8bit=True,
            llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
        ),
    )
    assert_references_are_not_seen(replace(llava, model=model))


def assert_references_are_not_seen(scene: Scene) -> None:
    last = scene.batch.spans[Segment.LAST].long()
    is_answer = (last.cumsum(dim=1) - last).bool() & scene.batch.attention_mask.bool()
    other = replace(scene.batch, input_ids=scene.batch.input_ids.masked_fill(is_answer, 7))
    found = []
    for batch in (scene.batch, other):
        asked = PromptPass(scene.model, batch, with_answers=True)
        scores = Likelihood().classify(asked, scene.tokenizer, scene.labels).scores
        found.append((scores, decode_answers(asked, 5)))

    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.equal(scene.batch.input_ids, other.input_ids)


def test_the_prompts_are_run_once_whoever_asks(llava: Scene) -> None:
    asked = PromptPass(llava.model, llava.batch, with_answers=True)

    with counting(llava.model) as lengths:
        for scorer in (Generation(max_new_tokens=3), Likelihood(), Generation(max_new_tokens=3)):
            scorer.classify(asked, llava.tokenizer, llava.labels)

    assert lengths == [llava.batch.input_ids.shape[1], 1, 1, lengths[3], 1, 1]


@pytest.mark.parametrize("scorer", [Likelihood(), Generation(max_new_tokens=3)])
def test_a_failure_in_the_middle_of_the_layers_leaves_no_trace(
    llava: Scene, scorer: Scorer
) -> None:
    """As when memory runs out: the same pass can be tried again."""
    asked = PromptPass(llava.model, llava.batch, with_answers=True)
    expected = scorer.classify(asked, llava.tokenizer, llava.labels)

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    handle = llava.model.get_decoder().layers[-1].register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        scorer.classify(asked, llava.tokenizer, llava.labels)
    handle.remove()

    again = scorer.classify(asked, llava.tokenizer, llava.labels)
    assert again.answers == expected.answers
    torch.testing.assert_close(again.scores, expected.scores, rtol=0, atol=0)


def test_some_samples_get_their_keys_and_the_others_would_be_run_again(llava: Scene) -> None:
    asked = PromptPass(llava.model, llava.batch, with_answers=True)
    expected = decode_answers(asked, 4)

    with counting(llava.model) as lengths:
        taken = decode_answers(asked.take([2, 0]), 4)
    assert lengths == [1, 1, 1]
    assert torch.equal(taken, expected[[2, 0]])
    assert torch.equal(decode_answers(asked, 4), expected)


def test_answers_are_left_out_where_a_window_has_no_room_for_them(
    llava: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of a window keeps fewer keys; the prompts are then run by themselves."""
    expected = Likelihood().predict(llava.model, llava.tokenizer, llava.batch, llava.labels).scores
    labels = sum(map(len, llava.labels.token_ids))
    prompts, length = (each.input_ids.shape[1] for each in (llava.batch.prompts(), llava.batch))

    def pass_with(window: int) -> PromptPass:
        name = "transformers.cache_utils.DynamicLayer.sliding_window"
        monkeypatch.setattr(name, window, raising=False)
        return PromptPass(llava.model, llava.batch, with_answers=True)

    wide, narrow = pass_with(length + labels + 1), pass_with(prompts + labels + 1)
    assert wide.with_room(labels) is wide
    assert narrow.with_answers
    assert not narrow.with_room(labels).with_answers
    scores = Likelihood().classify(narrow, llava.tokenizer, llava.labels).scores
    torch.testing.assert_close(scores, expected)
    assert not pass_with(length).with_answers


def mixed_batch(checkpoint: str, side: Any) -> MultimodalBatch:
    """Three questions of unequal length, one of them about no picture."""
    samples = []
    for number, answer in enumerate(("red", "four and more", "a blue circle")):
        shown = number != 1
        turns = [
            Turn("user", "What is it? " * (1 + number), images=int(shown)),
            Turn("assistant", answer),
        ]
        images = [picture(number, (40 + 8 * number, 28))] if shown else []
        samples.append(Sample(id=str(number), images=images, conversation=turns))
    collator = Collator(load_processor(checkpoint), ConversationPrompt(), padding_side=side)
    return collator([(0, sample) for sample in samples])


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    ["llava", "llava_next", "qwen2_vl", "qwen3_vl", "gemma3", "paligemma", "internvl", "mistral3"],
)
@torch.no_grad()
def test_in_every_kind_of_family_on_both_padding_sides_beside_a_text(
    family: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoint = str(build_tiny_checkpoint(tmp_path_factory.mktemp(family) / family, family))
    backbone = open_backbone(checkpoint, dtype=torch.float64)
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    names = ("red", "blue circle", "four and more")
    ids = tokenizer([f" {name}" for name in names], add_special_tokens=False)["input_ids"]
    labels = LabelSet(names, tuple(map(tuple, ids)))

    for side in ("right", "left"):
        batch = mixed_batch(checkpoint, side)
        asked = PromptPass(backbone.model, batch, with_answers=True)
        loss = answer_loss(backbone, batch, with_greedy=True, hidden=asked.hidden)
        expected = answer_loss(backbone, batch, with_greedy=True)
        torch.testing.assert_close(loss.total, expected.total, rtol=0, atol=1e-10)
        assert isinstance(loss.greedy, Tensor)
        assert torch.equal(loss.greedy, expected.greedy)  # type: ignore[arg-type]
        alone = PromptPass(backbone.model, batch)
        assert torch.equal(decode_answers(asked, 5), decode_answers(alone, 5))
        after, before = (
            Likelihood().classify(each, tokenizer, labels).scores for each in (asked, alone)
        )
        torch.testing.assert_close(after, before, rtol=0, atol=1e-10)
        part = asked.take([0, 2])
        assert torch.equal(decode_answers(part, 5), decode_answers(alone.take([0, 2]), 5))
