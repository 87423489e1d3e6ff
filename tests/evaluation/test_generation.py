from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import INVALID, Generation
from tests.evaluation.conftest import Scene, generated


def predict(scene: Scene, scorer: Generation | None = None) -> Any:
    return (scorer or Generation()).predict(scene.model, scene.tokenizer, scene.batch, scene.labels)


def test_the_class_is_read_from_the_new_tokens(llava: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    generated(llava, monkeypatch, ['"Two".', "It is zero", "one or two"])

    predictions = predict(llava)

    assert predictions.answers == ('"Two".', "It is zero", "one or two")
    assert predictions.predicted.tolist() == [2, 0, INVALID]
    assert predictions.scores is None


def test_decoding_is_greedy_and_stops_at_the_answer_end(llava: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    llava.model.generation_config.eos_token_id = [7]
    seen = generated(llava, monkeypatch, ["one", "one", "one"])
    predict(llava)

    assert seen["do_sample"] is False
    assert seen["num_beams"] == 1
    assert seen["eos_token_id"] == sorted({7, llava.batch.end_id})
    assert seen["pad_token_id"] == llava.batch.pad_id


@pytest.mark.parametrize(("longest", "expected"), [(3, 32), (40, 40)])
def test_an_answer_may_be_a_sentence_and_as_long_as_the_longest_label(
    llava: Scene, monkeypatch: pytest.MonkeyPatch, longest: int, expected: int
) -> None:
    object.__setattr__(llava.labels, "token_ids", ((5,) * longest, (5,)))
    seen = generated(llava, monkeypatch, ["one", "one", "one"])
    predict(llava)

    assert seen["max_new_tokens"] == expected


def test_the_real_model_follows_its_own_greedy_path(scene: Scene) -> None:
    predictions = predict(scene, Generation(max_new_tokens=3))

    prompts = scene.batch.prompts()
    with torch.no_grad():
        first = scene.model(**prompts.model_inputs()).logits[:, -1].argmax(dim=-1)
    for answer, token in zip(predictions.answers, first.tolist(), strict=True):
        assert answer.startswith(scene.tokenizer.batch_decode([[token]], skip_special_tokens=True)[0].strip())


def test_sampling_settings_of_the_checkpoint_are_overruled(llava: Scene) -> None:
    greedy, hot = predict(llava).answers, predict(llava, Generation(temperature=5.0)).answers
    config = llava.model.generation_config
    config.do_sample, config.temperature, config.top_p, config.top_k = True, 9.0, 1e-6, 1
    config.repetition_penalty, config.no_repeat_ngram_size, config.min_length = 5.0, 1, 500

    assert predict(llava).answers == greedy
    assert predict(llava, Generation(temperature=5.0)).answers == hot != greedy


def test_sampled_answers_depend_on_the_seed_alone(llava: Scene) -> None:
    hot = Generation(temperature=5.0)
    state = torch.get_rng_state()

    first, second = predict(llava, hot), predict(llava, hot)

    assert torch.equal(torch.get_rng_state(), state)
    assert first.answers == second.answers
    assert first.answers != predict(llava, Generation(temperature=5.0, seed=1)).answers


def test_sampling_near_zero_is_greedy(llava: Scene) -> None:
    assert predict(llava, Generation(temperature=1e-4)).answers == predict(llava).answers


def test_a_negative_temperature_is_refused() -> None:
    with pytest.raises(ConfigError, match="temperature"):
        Generation(temperature=-0.1)
