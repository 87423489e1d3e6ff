from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from lightning_mllm import callbacks
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import INVALID, Generation, decoding
from lightning_mllm.evaluation.decoding import describe_decoding
from tests.evaluation.conftest import Scene, generated

_EVERY = list(range(4, 200))
_MOVES: dict[str, Any] = {  # key of a generation config -> what moves an answer, where it is not 8
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "min_p", "top_h"), 0.9),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), _EVERY),
    "bad_words_ids": [[token] for token in _EVERY],
    "sequence_bias": [[[token], -90.0] for token in _EVERY],
    "exponential_decay_length_penalty": [1, 90.0],
    "encoder_repetition_penalty": 90.0,
    "max_time": 1e-6,
    "watermarking_config": {"bias": 90.0},
}


def predict(scene: Scene, scorer: Generation | None = None) -> Any:
    return (scorer or Generation()).predict(scene.model, scene.tokenizer, scene.batch, scene.labels)


def test_the_class_is_read_from_the_new_tokens(
    llava: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated(llava, monkeypatch, ['"Two".', "It is zero", "one or two"])

    predictions = predict(llava)

    assert predictions.answers == ('"Two".', "It is zero", "one or two")
    assert predictions.predicted.tolist() == [2, 0, INVALID]
    assert predictions.scores is None


def test_decoding_stops_where_each_answer_has_an_end(
    llava: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = generated(llava, monkeypatch, ["one", "one two", "one"])
    assert predict(llava).answers == ("one", "one two", "one")
    assert seen["temperature"] == 0
    whole = seen["tokens"]

    (two,) = llava.tokenizer(" two", add_special_tokens=False)["input_ids"]
    llava.model.generation_config.eos_token_id = [two]
    predict(llava)

    assert whole == 3
    assert seen["tokens"] == 2


@pytest.mark.parametrize(("longest", "expected"), [(3, 32), (40, 40)])
def test_an_answer_may_be_a_sentence_and_as_long_as_the_longest_label(
    llava: Scene, monkeypatch: pytest.MonkeyPatch, longest: int, expected: int
) -> None:
    object.__setattr__(llava.labels, "token_ids", ((5,) * longest, (5,)))
    seen = generated(llava, monkeypatch, ["one " * 50] * 3)
    predict(llava)

    assert seen["tokens"] == expected


def test_the_real_model_follows_its_own_greedy_path(scene: Scene) -> None:
    predictions = predict(scene, Generation(max_new_tokens=3))

    prompts = scene.batch.prompts()
    with torch.no_grad():
        first = scene.model(**prompts.model_inputs()).logits[:, -1].argmax(dim=-1)
    for answer, token in zip(predictions.answers, first.tolist(), strict=True):
        assert answer.startswith(
            scene.tokenizer.batch_decode([[token]], skip_special_tokens=True)[0].strip()
        )


def test_sampling_settings_of_the_checkpoint_are_overruled(llava: Scene) -> None:
    greedy, hot = predict(llava).answers, predict(llava, Generation(temperature=5.0)).answers
    config = llava.model.generation_config
    config.do_sample, config.temperature, config.top_p, config.top_k = True, 9.0, 1e-6, 1
    config.repetition_penalty, config.no_repeat_ngram_size, config.min_length = 5.0, 1, 500

    assert predict(llava).answers == greedy
    assert predict(llava, Generation(temperature=5.0)).answers == hot != greedy


def test_no_key_of_the_checkpoint_s_generation_config_moves_an_answer(llava: Scene) -> None:
    scene, config = replace(llava, batch=llava.batch.take([0])), llava.model.generation_config
    scorers = (Generation(max_new_tokens=2), Generation(max_new_tokens=2, temperature=2.0))

    def answers() -> list[Any]:
        try:
            return [predict(scene, scorer).answers for scorer in scorers]
        except Exception as error:  # whatever it is, it is the key's
            return [error]

    expected, moved = answers(), {}
    keys = [
        key
        for key in vars(GenerationConfig())
        if key not in ("eos_token_id", "_original_object_hash")
    ]
    for key in [*keys, "an_entry_of_its_own"]:
        before = getattr(config, key, None)
        setattr(config, key, _MOVES.get(key, 8))
        if (found := answers()) != expected:
            moved[key] = found
        assert getattr(config, key) == _MOVES.get(key, 8)  # as it is exported
        setattr(config, key, before)

    assert len(keys) > 50
    assert moved == {}


def test_what_is_taken_over_and_what_is_not_used_is_named() -> None:
    config = GenerationConfig(
        eos_token_id=[2, 7], bos_token_id=1, pad_token_id=0, top_p=0.9, temperature=1.0
    )

    said = describe_decoding(config)

    assert said is not None
    assert re.search(r"only eos_token_id=\[2, 7\] is used.* Not used.*: top_p=0.9\.", said)
    assert describe_decoding(GenerationConfig(eos_token_id=2, do_sample=False, num_beams=1)) is None


def test_nothing_calls_the_models_own_generate() -> None:
    package = Path(decoding.__file__).parents[1]
    files = [
        file for root in (package, Path(callbacks.__file__).parent) for file in root.rglob("*.py")
    ]

    assert [file.name for file in files if re.search(r"\.generate\b", file.read_text())] == []


def test_sampled_answers_depend_on_the_seed_alone(llava: Scene) -> None:
    hot = Generation(temperature=5.0)
    state = torch.get_rng_state()

    first, second = predict(llava, hot), predict(llava, hot)

    assert torch.equal(torch.get_rng_state(), state)
    assert first.answers == second.answers
    assert first.answers != predict(llava, Generation(temperature=5.0, seed=1)).answers


def test_sampling_near_zero_is_greedy(llava: Scene) -> None:
    assert predict(llava, Generation(temperature=1e-4)).answers == predict(llava).answers


@pytest.mark.parametrize(
    ("options", "message"),
    [({"temperature": -0.1}, "temperature"), ({"max_new_tokens": 0}, "max_new_tokens .* 1, not 0")],
)
def test_impossible_numbers_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Generation(**options)
