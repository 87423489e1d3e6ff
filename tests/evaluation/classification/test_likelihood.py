from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mllm.batches import join_images
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import Likelihood
from lightning_mllm.types import LabelSet
from tests.evaluation.conftest import Scene


@torch.no_grad()
def score_labels_separately(scene: Scene) -> Tensor:
    """The definition, one full forward per label: summed log-probabilities, (batch, classes)."""
    prompts = scene.batch.prompts()
    scores = []
    for token_ids in scene.labels.token_ids:
        label = torch.tensor(token_ids).expand(len(prompts), -1)
        mask = torch.cat([prompts.attention_mask, torch.ones_like(label)], dim=1)
        logits = scene.model(
            input_ids=torch.cat([prompts.input_ids, label], dim=1),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            **join_images(prompts.images),
        ).logits
        predicting = logits[:, -label.shape[1] - 1 : -1].double().log_softmax(-1)
        scores.append(predicting.gather(2, label[..., None]).sum(dim=(1, 2)))
    return torch.stack(scores, dim=1)


def scores_of(scene: Scene, scorer: Likelihood | None = None, **changes: Any) -> Tensor:
    scene = replace(scene, **changes)
    predictions = (scorer or Likelihood()).predict(
        scene.model, scene.tokenizer, scene.batch, scene.labels
    )
    assert predictions.scores is not None
    return predictions.scores


def test_shared_prefix_equals_one_full_forward_per_label(scene: Scene) -> None:
    scores = scores_of(scene)

    expected = score_labels_separately(scene)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("tokens_per_pass", [1, 5, 9])
def test_cutting_the_labels_into_passes_changes_nothing(scene: Scene, tokens_per_pass: int) -> None:
    chunked = scores_of(scene, Likelihood(tokens_per_pass=tokens_per_pass))

    torch.testing.assert_close(chunked, scores_of(scene), atol=1e-5, rtol=1e-6)


def test_the_order_of_the_classes_does_not_matter(llava: Scene) -> None:
    order = [3, 0, 5, 1, 4, 2]
    labels = LabelSet(
        tuple(llava.labels.names[i] for i in order), tuple(llava.labels.token_ids[i] for i in order)
    )

    shuffled = scores_of(llava, labels=labels)

    torch.testing.assert_close(shuffled, scores_of(llava)[:, order], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("indices", [[2, 0, 1], [1], [0, 2]])
def test_the_company_in_the_batch_does_not_matter(scene: Scene, indices: list[int]) -> None:
    scores = scores_of(scene, batch=scene.batch_of(indices))

    torch.testing.assert_close(scores, scores_of(scene)[indices], atol=1e-5, rtol=1e-6)


def test_the_true_answer_in_the_batch_is_not_looked_at(llava: Scene) -> None:
    end_id = llava.batch.end_id
    prompts = llava.batch.prompts()
    answered = replace(
        llava.batch, input_ids=llava.batch.input_ids.masked_fill(llava.batch.input_ids == end_id, 9)
    )

    assert torch.equal(scores_of(llava, batch=answered), scores_of(llava))
    torch.testing.assert_close(scores_of(llava, batch=prompts), scores_of(llava))


def test_a_label_of_one_token_is_scored_from_the_prompt_alone(llava: Scene) -> None:
    labels = LabelSet(("a", "b"), ((9,), (10,)))

    scores = scores_of(llava, labels=labels)

    torch.testing.assert_close(
        scores.double(),
        score_labels_separately(replace(llava, labels=labels)),
        atol=1e-5,
        rtol=1e-6,
    )


def test_the_keys_of_the_prompt_are_as_before_after_each_pass(
    llava: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[Any, Tensor]] = []
    lengths: list[int] = []
    base_model = llava.model.base_model
    forward = base_model.forward

    def spying_forward(**inputs: Any) -> Any:
        if inputs.get("past_key_values") is not None:
            lengths.append(inputs["past_key_values"].get_seq_length())
        outputs = forward(**inputs)
        if not kept:
            kept.append((outputs.past_key_values, outputs.past_key_values.layers[0].keys.clone()))
        return outputs

    monkeypatch.setattr(base_model, "forward", spying_forward)
    scores_of(llava, Likelihood(tokens_per_pass=4))

    cache, keys = kept[0]
    prompt, *labels = lengths
    assert prompt == 0
    assert len(labels) > 1
    assert set(labels) == {keys.shape[-2]}
    assert torch.equal(cache.layers[0].keys, keys)


def test_images_go_through_the_tower_once(llava: Scene) -> None:
    calls: list[int] = []
    handle = llava.model.get_submodule("model.vision_tower").register_forward_hook(
        lambda *_: calls.append(1)
    )
    scores_of(llava, Likelihood(tokens_per_pass=4))
    handle.remove()

    assert len(calls) == 1


def test_bfloat16_gives_float32_scores_near_the_exact_ones(llava: Scene) -> None:
    exact = scores_of(llava)
    rounded = scores_of(replace(llava, model=llava.model.bfloat16()))

    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.06, rtol=0)


@pytest.mark.parametrize("trained", ["model.language_model", "model.multi_modal_projector"])
def test_autocast_with_trained_parts_in_float32_gives_scores_near_the_exact_ones(
    scene: Scene, trained: str
) -> None:
    exact = scores_of(scene)
    scene.model.bfloat16().get_submodule(trained).float()

    with torch.autocast("cpu", torch.bfloat16):
        mixed = scores_of(scene)

    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, atol=0.06, rtol=0)


def test_the_answer_is_the_name_of_the_most_likely_class(llava: Scene) -> None:
    predictions = Likelihood().predict(llava.model, llava.tokenizer, llava.batch, llava.labels)

    assert predictions.scores is not None
    assert torch.equal(predictions.predicted, predictions.scores.argmax(dim=1))
    assert predictions.answers == tuple(
        llava.labels.names[index] for index in predictions.predicted.tolist()
    )


def test_flash_attention_is_refused_with_the_way_out(llava: Scene) -> None:
    llava.model.get_decoder().config._attn_implementation = "flash_attention_2"

    with pytest.raises(ConfigError, match="attention=sdpa, or use the generation scorer"):
        scores_of(llava)


def test_a_window_narrower_than_prompt_and_labels_is_refused(
    llava: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, window = scores_of(llava), "transformers.cache_utils.DynamicLayer.sliding_window"
    length = llava.batch.prompts().input_ids.shape[1] + sum(map(len, llava.labels.token_ids))

    monkeypatch.setattr(window, length + 1, raising=False)
    assert torch.equal(scores_of(llava), expected)
    monkeypatch.setattr(window, length)
    with pytest.raises(ConfigError, match=f"{length} positions, .* sliding window of {length}"):
        scores_of(llava)
