"""Pairs of questions differ in one thing only, and both answers are the right ones."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from lightning_mllm.errors import ConfigError
from lightning_mllm.testbed import HELD_OUT, QuestionPair, draw_image, make_question_pairs
from lightning_mllm.testbed.pairs import WorldPairs
from lightning_mllm.testbed.training.pairs import SWAPS, Swap
from tests.support.datamodule_contract import DataModuleContract
from tests.support.world_oracle import judge


@cache
def pairs(swap: Swap) -> tuple[QuestionPair, ...]:
    return tuple(make_question_pairs(swap, 4))


@pytest.mark.parametrize("swap", SWAPS)
def test_both_answers_are_right_and_differ(swap: Swap) -> None:
    for pair in pairs(swap):
        assert pair.clean.answer != pair.corrupted.answer
        for question in (pair.clean, pair.corrupted):
            assert judge(question.scene, question.text).answer == question.answer


def test_pictures_differ_in_the_objects_box_only_and_questions_not_at_all() -> None:
    for pair in pairs("attribute"):
        (ours,), (theirs,) = (each.question.references for each in (pair.clean, pair.corrupted))  # type: ignore[union-attr]
        assert ours.thing is not None
        assert theirs.thing is not None
        assert pair.clean.text == pair.corrupted.text
        assert ours.thing.box == theirs.thing.box
        assert (theirs.thing.color, theirs.thing.shape) not in HELD_OUT
        one, two = (np.asarray(draw_image(each.scene)) for each in (pair.clean, pair.corrupted))
        left, top, width, height = ours.thing.box
        differs = (one != two).any(-1)
        assert differs[top : top + height, left : left + width].any()
        differs[top : top + height, left : left + width] = False
        assert not differs.any()


def test_pairs_of_words_ask_as_many_of_one_picture() -> None:
    for pair in pairs("words"):
        assert pair.clean.scene == pair.corrupted.scene
        counts = [len(each.text.split()) for each in (pair.clean, pair.corrupted)]
        assert counts[0] == counts[1]
        assert pair.clean.text != pair.corrupted.text


def test_an_unknown_swap_and_batches_that_part_pairs_are_refused() -> None:
    with pytest.raises(ConfigError, match="swap is 'size'; it can be 'attribute' or 'words'"):
        list(make_question_pairs("size", 4))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="eval_batch_size is 3, which parts the samples"):
        WorldPairs(checkpoint="unused", eval_batch_size=3)
    shared = WorldPairs(checkpoint="unused", eval_batch_size=6)
    shared.trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"shared by 2 processes, .* multiple of 4"):
        shared.setup("test")


class TestWorldPairs(DataModuleContract):
    def make(self, checkpoint: str, **options: object) -> WorldPairs:
        options |= {"per_kind": 1, "val_per_kind": 1, "train_per_kind": 1}
        return WorldPairs(checkpoint=checkpoint, **options)  # type: ignore[arg-type]

    def test_partners_follow_each_other_in_one_picture(self) -> None:
        samples = WorldPairs(checkpoint="unused", per_kind=2, swap="words").load("test")

        for clean, corrupted in zip(samples[::2], samples[1::2], strict=True):
            assert clean.partner == corrupted.id
            assert corrupted.partner is None
            assert (clean.picture, clean.kind) == (corrupted.picture, corrupted.kind)
