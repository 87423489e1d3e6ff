"""A model is asked once, whoever wants to know and in whatever batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.evaluation import ExactMatch, KnownAnswers, OpenAnswer
from tests.evaluation.conftest import Scene, generated


def of_kinds(scene: Scene, *kinds: str | None) -> MultimodalBatch:
    return replace(scene.batch, kinds=kinds)


def test_they_are_what_the_model_is_found_to_say(llava: Scene) -> None:
    batch = of_kinds(llava, "a", "b", "a")

    known = KnownAnswers().of(ExactMatch(), llava.model, llava.tokenizer, batch)

    assert tuple(known.values()) == ExactMatch().evaluate(llava.model, llava.tokenizer, batch)
    assert tuple(known) == batch.sample_ids


def test_a_sample_is_asked_once_whatever_stands_beside_it(
    llava: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    evaluate = ExactMatch.evaluate

    def noted(
        self: ExactMatch, model: Any, tokenizer: Any, batch: MultimodalBatch
    ) -> Sequence[OpenAnswer]:
        asked.extend(batch.sample_ids)
        return evaluate(self, model, tokenizer, batch)

    monkeypatch.setattr(ExactMatch, "evaluate", noted)
    known, batch = KnownAnswers(), of_kinds(llava, "a", "b", "a")
    first, every, again = (
        known.of(ExactMatch(), llava.model, llava.tokenizer, batch.take(rows))
        for rows in ([1], [0, 1, 2], [2, 0])
    )

    assert asked == ["sample-1", "sample-0", "sample-2"]
    assert every["sample-1"] == first["sample-1"]
    assert again == {name: every[name] for name in ("sample-2", "sample-0")}


def test_another_match_has_answers_of_its_own(
    llava: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, batch = KnownAnswers(), of_kinds(llava, "a", "b", "a").take([0])
    generated(llava, monkeypatch, ["three."])

    folded, exact = (
        known.of(judge, llava.model, llava.tokenizer, batch)
        for judge in (ExactMatch(), ExactMatch(match="paper"))
    )

    assert (folded["sample-0"].correct, exact["sample-0"].correct) == (True, False)


def test_samples_without_a_kind_have_no_answer(
    llava: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, batch = KnownAnswers(), of_kinds(llava, None, "b", None)
    generated(llava, monkeypatch, ["three"])

    for _ in range(2):
        assert list(known.of(ExactMatch(), llava.model, llava.tokenizer, batch)) == ["sample-1"]
