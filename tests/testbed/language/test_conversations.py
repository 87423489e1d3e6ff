import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightning_mllm.data.datasets.digits import NAMES as DIGITS
from lightning_mllm.models.tiny import TinySize, build_tiny_checkpoint
from lightning_mllm.testbed import HELD_OUT, Draw, Scene
from lightning_mllm.testbed.domains.datamodule import Domain, DomainName
from lightning_mllm.testbed.language import conversations as talk
from lightning_mllm.testbed.language.captions import CAPTION_REQUEST
from lightning_mllm.types import Turn
from tests.support.command_line import CONFIGS
from tests.support.world_oracle import judge, pairs_in
from tests.support.worlds import scenes


def said(count: int = 60) -> Iterator[tuple[Scene, list[talk.Exchange]]]:
    """Yield conversations with all that training has, but for repetitions."""
    for scene in scenes(count):
        draw = Draw("said", scene.id)
        yield (
            scene,
            [
                *talk.converse_on_caption(scene),
                *talk.converse_on_lookups(scene, draw, 4),
                *talk.converse_on_questions(scene, draw, 10),
            ],
        )


def test_every_answer_is_what_the_scene_says() -> None:
    for scene, exchanges in said():
        for text, answer in exchanges:
            assert answer == judge(scene, text).answer, text


def test_no_held_out_pair_is_mentioned() -> None:
    for scene, exchanges in said():
        for text, answer in talk.add_notes_to_conversation(
            scene, exchanges, Draw("notes", scene.id)
        ):
            assert not (pairs_in(text) | pairs_in(answer)) & HELD_OUT
        for text, _ in exchanges:
            assert not judge(scene, text).mentioned & HELD_OUT


def test_repetitions_mention_no_held_out_pair() -> None:
    for number in range(200):
        assert not pairs_in(talk.converse_on_words(Draw(number))[0][0]) & HELD_OUT


def test_nothing_is_said_twice() -> None:
    for _, exchanges in said():
        assert len({text for text, _ in exchanges}) == len(exchanges)


def test_questions_are_of_all_kinds_in_turn() -> None:
    for scene in scenes(30, objects=(4, 5)):
        texts = [text for text, _ in talk.converse_on_questions(scene, Draw(scene.id), 7)]
        firsts = {" ".join(text.split()[:2]) for text in texts}
        assert len(texts) == 7
        assert len(firsts) >= 3


@pytest.mark.parametrize("count", [0, 1, 6])
def test_a_conversation_is_as_long_as_asked_for(count: int) -> None:
    for scene in scenes(20, objects=(3, 5)):
        assert len(talk.converse_on_questions(scene, Draw("long"), count)) == count
        assert len(talk.converse_on_lookups(scene, Draw("long"), count)) == count


def test_held_out_scenes_can_be_talked_about() -> None:
    for scene in scenes(10, "held_out"):
        for text, answer in talk.converse_on_questions(scene, Draw(scene.id), 8, "held_out"):
            assert answer == judge(scene, text).answer


def test_repeated_words_are_those_that_were_said() -> None:
    for number in range(50):
        ((text, answer),) = talk.converse_on_words(Draw(number))
        assert text == f"Repeat: {answer}"
        assert 6 <= len(answer.split()) <= 24


def test_foreign_words_are_the_classes_of_the_domains_and_digits() -> None:
    domains = [Domain(checkpoint="unused", name=name).load("val") for name in get_args(DomainName)]
    names = {sample.label for samples in domains for sample in samples}
    said = [talk.converse_on_foreign_words(Draw(number))[0] for number in range(300)]

    assert set(talk.FOREIGN_WORDS) == names | set(DIGITS) | set(map(str, range(10)))
    assert all(text == f"Repeat: {answer}" for text, answer in said)
    assert all(any(name in answer for _, answer in said) for name in talk.FOREIGN_WORDS)


def test_notes_stand_before_the_first_question_only() -> None:
    for scene, exchanges in said(20):
        (first, answer), *others = talk.add_notes_to_conversation(scene, exchanges, Draw("notes"))
        facts, question = first.split("\n")
        assert (question, answer) == exchanges[0]
        assert others == exchanges[1:]
        assert len(facts.split(", ")) == len(scene.objects)


def test_turns_alternate_and_the_first_has_the_picture() -> None:
    turns = talk.write_conversation_turns([("a", "b"), ("c", "d")], images=1)

    assert turns == [
        Turn("user", "a", images=1),
        Turn("assistant", "b"),
        Turn("user", "c"),
        Turn("assistant", "d"),
    ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """The tokenizer of the test-bed's models, with a model that is smaller than theirs."""
    options = yaml.safe_load((CONFIGS / "testbed_training" / "0_start.yaml").read_text())
    size = replace(
        TinySize(**options.pop("size")),
        vision_width=8,
        vision_layers=1,
        text_width=8,
        text_layers=1,
    )
    folder = build_tiny_checkpoint(
        Path(tmp_path_factory.mktemp("start") / "tiny"), size=size, **options
    )
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return found


def test_each_word_of_the_world_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = []
    for scene, exchanges in said(100):
        noted = talk.add_notes_to_conversation(scene, exchanges, Draw("notes", scene.id))
        for text, answer in [*exchanges, *noted, *talk.converse_on_words(Draw(scene.id))]:
            texts += [f" {text}", f" {answer}"]  # behind "USER:" and "ASSISTANT:"
        texts += [f"\n{text}" for text, _ in exchanges]  # behind a picture
    words = {word for text in texts for word in re.findall(r" ?[A-Za-z]+| ?\d|[^\w\s]|\n", text)}

    tokens = {word: len(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in words}
    assert len(words) > 80
    assert CAPTION_REQUEST.split()[0] in words
    assert {word: count for word, count in tokens.items() if count != 1} == {}
