"""The reference of each of the three prompts is "three"."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import ExactMatch, OpenAnswer, decoding
from lightning_mllm.types import Segment
from tests.evaluation.conftest import Scene, generated

KINDS = ("a", "b", "a")


def asked(scene: Scene, kinds: tuple[str | None, ...] = KINDS) -> MultimodalBatch:
    return replace(scene.batch, kinds=kinds)


def evaluate(
    scene: Scene, kinds: tuple[str | None, ...] = KINDS, spare_tokens: int | None = None
) -> tuple[OpenAnswer, ...]:
    evaluator = ExactMatch() if spare_tokens is None else ExactMatch(spare_tokens)
    return evaluator.evaluate(scene.model, scene.tokenizer, asked(scene, kinds))


def reference_length(scene: Scene) -> int:
    return len(scene.tokenizer(" three</s>", add_special_tokens=False)["input_ids"])


def first_token(scene: Scene, text: str) -> int:
    return int(scene.tokenizer(f" {text}", add_special_tokens=False)["input_ids"][0])


def test_an_answer_is_right_if_it_is_its_reference(
    llava: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated(llava, monkeypatch, ["three", "two", "three"])
    three, two = (first_token(llava, text) for text in ("three", "two"))

    assert evaluate(llava) == (
        OpenAnswer("sample-0", "a", "three", "three", True, three, "sample-0"),
        OpenAnswer("sample-1", "b", "three", "two", False, two, "sample-1"),
        OpenAnswer("sample-2", "a", "three", "three", True, three, "sample-2"),
    )


@pytest.mark.parametrize(
    ("said", "correct"),
    [
        ("Three.", True),
        ('"three"', True),
        (" THREE", True),
        ("three three", False),
        ("thre", False),
        ("", False),
        (".", False),
    ],
)
def test_case_quotes_full_stop_and_spacing_are_folded_and_nothing_else(
    llava: Scene, monkeypatch: pytest.MonkeyPatch, said: str, correct: bool
) -> None:
    generated(llava, monkeypatch, [said] * 3)

    assert [answer.correct for answer in evaluate(llava)] == [correct] * 3


@pytest.mark.parametrize(
    ("said", "correct"),
    [
        ("Three", True),
        (" THREE ", True),
        ("three.", False),
        ("'three'", False),
        ("three three", False),
    ],
)
def test_as_in_the_paper_only_capitals_of_the_answer_are_folded(
    llava: Scene, monkeypatch: pytest.MonkeyPatch, said: str, correct: bool
) -> None:
    generated(llava, monkeypatch, [said] * 3)

    answers = ExactMatch(match="paper").evaluate(llava.model, llava.tokenizer, asked(llava))

    assert [answer.correct for answer in answers] == [correct] * 3


def test_an_unknown_match_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="match is 'exact'; it can be 'normalised' or 'paper'"):
        ExactMatch(match="exact")  # type: ignore[arg-type]


def test_samples_without_a_kind_are_not_asked(
    llava: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = generated(llava, monkeypatch, ["three"])

    (answer,) = evaluate(llava, (None, "b", None))

    assert (answer.sample_id, answer.kind, answer.correct) == ("sample-1", "b", True)
    assert len(seen["input_ids"]) == 1
    assert len(seen["pixel_values"]) == 1


def test_without_any_kind_nothing_is_generated(
    llava: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = generated(llava, monkeypatch, ["three"])

    assert evaluate(llava, (None,) * 3) == ()
    assert not seen


def test_no_more_is_generated_than_can_matter(
    llava: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = generated(llava, monkeypatch, ["three " * 20] * 3)
    evaluate(llava)

    assert seen["tokens"] == reference_length(llava) + 8
    assert seen["temperature"] == 0


@pytest.mark.parametrize("spare_tokens", [1, 2, 8, 40])
def test_the_length_at_which_answers_are_cut_does_not_change_the_score(
    llava: Scene, monkeypatch: pytest.MonkeyPatch, spare_tokens: int
) -> None:
    generated(
        llava,
        monkeypatch,
        ["three", "three of them, or three and a half", "three three three three three"],
    )

    assert [answer.correct for answer in evaluate(llava, spare_tokens=spare_tokens)] == [
        True,
        False,
        False,
    ]


def test_what_a_cut_leaves_of_a_longer_answer_is_wrong(
    llava: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated(llava, monkeypatch, ["three three"] * 3)

    cut = evaluate(llava, spare_tokens=-1)  # an end-of-turn token less than the reference has

    assert {(answer.answer, answer.correct) for answer in cut} == {("three", False)}


def test_answers_do_not_depend_on_the_other_samples_of_the_batch(scene: Scene) -> None:
    together = evaluate(scene)
    alone = [
        ExactMatch().evaluate(
            scene.model, scene.tokenizer, replace(scene.batch_of([i]), kinds=KINDS[i : i + 1])
        )
        for i in range(3)
    ]

    assert together == sum(alone, ())


def test_an_answer_whose_every_token_is_the_likeliest_is_not_generated(
    llava: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = generated(llava, monkeypatch, ["two"])
    greedy = torch.ones_like(llava.batch.input_ids, dtype=torch.bool)
    greedy[0] = False  # of a sample that is not asked
    greedy[2, llava.batch.attention_mask[2].sum() - 1] = False  # the end of an answer

    answers = ExactMatch().evaluate(
        llava.model, llava.tokenizer, asked(llava, (None, "b", "a")), greedy
    )

    assert [(answer.answer, answer.correct) for answer in answers] == [
        ("three", True),
        ("two", False),
    ]
    assert len(seen["pixel_values"]) == 1


def test_a_known_answer_is_what_generation_says(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose greedy answer is the reference need not be asked: it says the same if it is."""
    for row in range(3):
        own = says_its_own(scene, replace(scene.batch_of([row]), kinds=("a",)))
        greedy = torch.ones_like(own.input_ids, dtype=torch.bool)
        (said,) = ExactMatch().evaluate(scene.model, scene.tokenizer, own)
        with monkeypatch.context() as patched:
            patched.setattr(decoding, "_choose_tokens", None)  # nothing can be generated
            (known,) = ExactMatch().evaluate(scene.model, scene.tokenizer, own, greedy)

        assert said == known
        assert said.correct


def says_its_own(scene: Scene, batch: MultimodalBatch) -> MultimodalBatch:
    """Make the model's greedy answer the reference of a batch of one; its last token is the end."""
    ids = batch.input_ids.clone()
    for position in range(int(batch.spans[Segment.LAST].int().argmax()) + 1, ids.shape[1]):
        with torch.no_grad():
            logits = scene.model(**replace(batch, input_ids=ids).model_inputs()).logits
        ids[0, position] = logits[0, position - 1].argmax()
    return replace(batch, input_ids=ids, end_id=int(ids[0, -1]))
