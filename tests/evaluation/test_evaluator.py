from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import AnswerScore, Evaluator, Generation, Likelihood
from lightning_mllm.evaluation.prompt_pass import PromptPass
from tests.evaluation.conftest import Scene, generated

KINDS = ("a", None, "b")


def test_labels_win_over_kinds(llava: Scene) -> None:
    evaluator = Evaluator([Likelihood()])
    evaluator.prepare(llava.labels, ())

    scored = evaluator.score(
        PromptPass(llava.model, replace(llava.batch, kinds=KINDS)), llava.tokenizer
    )

    assert set(scored.predictions) == {"likelihood"}
    assert scored.answers == ()
    assert set(evaluator.finish()) == {
        f"likelihood/{key}" for key in ("accuracy", "macro_f1", "invalid_rate")
    }
    assert evaluator.results["likelihood"].n == 3
    assert evaluator.exact_match is None


def test_open_answers_are_counted_per_kind(llava: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    generated(llava, monkeypatch, ["three", "two"])
    evaluator = Evaluator([Likelihood()])
    evaluator.prepare(None, ("a", "b", "c"))

    for _ in range(2):
        evaluator.reset()
        evaluator.score(PromptPass(llava.model, replace(llava.batch, kinds=KINDS)), llava.tokenizer)
        logged = evaluator.finish()

    assert logged == {"exact_match/accuracy": 0.5, "exact_match/a": 1.0, "exact_match/b": 0.0}
    assert evaluator.results == {}
    assert evaluator.exact_match is not None
    assert evaluator.exact_match.per_kind == {"a": AnswerScore(1, 1), "b": AnswerScore(1, 0)}


def test_free_form_data_without_kinds_is_not_asked(
    llava: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = generated(llava, monkeypatch, ["three"])
    evaluator = Evaluator([Generation()])
    evaluator.prepare(None, ())

    evaluator.score(PromptPass(llava.model, llava.batch), llava.tokenizer)

    assert not seen
    assert evaluator.finish() == {}
    assert evaluator.exact_match is None


def test_without_scorers_no_sample_is_asked(llava: Scene) -> None:
    evaluator = Evaluator([])
    evaluator.prepare(llava.labels, ())

    assert len(evaluator.asked(llava.batch)) == 0


def test_another_dataset_takes_the_place_of_the_first(
    llava: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = Evaluator([Likelihood()])
    evaluator.prepare(llava.labels, ())
    evaluator.score(PromptPass(llava.model, llava.batch), llava.tokenizer)
    evaluator.finish()
    generated(llava, monkeypatch, ["three"])

    evaluator.prepare(None, ("a",))
    evaluator.score(
        PromptPass(llava.model, replace(llava.batch, kinds=("a", None, None))), llava.tokenizer
    )

    assert evaluator.finish() == {"exact_match/accuracy": 1.0, "exact_match/a": 1.0}
    assert evaluator.results == {}


def test_it_has_no_weights_and_nothing_to_save() -> None:
    evaluator = Evaluator([Generation()])
    evaluator.prepare(None, ("a",))

    assert list(evaluator.parameters()) == []
    assert evaluator.state_dict() == {}


def test_a_scorer_stands_there_once() -> None:
    with pytest.raises(ConfigError, match="names the same scorer twice"):
        Evaluator([Generation(), Generation(temperature=1.0)])
