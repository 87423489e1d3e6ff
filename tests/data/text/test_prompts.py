import pytest

from lightning_mllm.data import VICUNA_SYSTEM, ClassificationPrompt, ConversationPrompt, PlainPrompt
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import Sample, Turn
from tests.data.conftest import picture

NAMES = tuple(f"class {k}" for k in range(12))
SAMPLE = Sample(id="leaf-1", images=[picture()], label="class 3")


def test_a_question_lists_all_classes_in_quotes() -> None:
    prompt = ClassificationPrompt(task="plant leaf diseases", shuffle=False)

    user, answer = prompt.dialogue(SAMPLE, NAMES[:3], 0).turns

    assert user.text.endswith('categories of plant leaf diseases: "class 0", "class 1", "class 2".')
    assert user.instruction.endswith("\n\nOutput:")
    assert user.images == 1
    assert answer == Turn("assistant", "class 3")


def test_the_order_varies_by_sample_epoch_and_seed_and_is_repeatable() -> None:
    prompt = ClassificationPrompt()
    order = prompt.class_order(SAMPLE, NAMES, 0)

    others = [
        prompt.class_order(SAMPLE, NAMES, 1),
        prompt.class_order(Sample(id="leaf-2", label="class 3"), NAMES, 0),
        ClassificationPrompt(seed=1).class_order(SAMPLE, NAMES, 0),
    ]
    assert order == ClassificationPrompt().class_order(SAMPLE, NAMES, 0)
    assert sorted(order) == sorted(NAMES)
    assert all(order != other for other in others)


def test_the_order_is_the_same_in_every_process() -> None:
    numbers = (9, 0, 6, 10, 2, 4, 11, 3, 5, 7, 8, 1)
    order = ClassificationPrompt().class_order(SAMPLE, NAMES, 4)

    assert order == [f"class {number}" for number in numbers]  # of processes before this one


def test_each_place_of_the_list_is_taken_by_each_class_about_equally_often() -> None:
    prompt = ClassificationPrompt()
    firsts = [prompt.class_order(Sample(id=str(k), label="x"), NAMES[:4], 0)[0] for k in range(400)]

    assert all(60 < firsts.count(name) < 140 for name in NAMES[:4])


@pytest.mark.parametrize("question", ["Which of {names}?", "Which of { }?", "Which?"])
def test_a_question_with_other_fields_is_refused(question: str) -> None:
    with pytest.raises(ConfigError, match=r"question .* (field|lacks)"):
        ClassificationPrompt(question=question)


def test_a_question_without_the_list_is_asked_as_it_stands() -> None:
    prompt = ClassificationPrompt(question="What is it?", instruction="", lists_classes=False)

    user, answer = prompt.dialogue(Sample(id="a", label=NAMES[0]), NAMES, 0).turns
    assert (user.text, user.instruction, answer.text) == ("What is it?", "", NAMES[0])
    with pytest.raises(ConfigError, match=r"has {classes}.* lists_classes is false"):
        ClassificationPrompt(question="Which of {classes}?", lists_classes=False)


def test_a_sample_without_a_label_cannot_be_asked_for_one() -> None:
    with pytest.raises(DataError, match="Sample 'chat' has no label"):
        ClassificationPrompt().dialogue(Sample(id="chat"), NAMES, 0)


def test_the_system_text_is_vicunas_if_asked_for() -> None:
    assert ClassificationPrompt().dialogue(SAMPLE, NAMES, 0).system == ""
    assert (
        ClassificationPrompt(system=VICUNA_SYSTEM).dialogue(SAMPLE, NAMES, 0).system
        == VICUNA_SYSTEM
    )


def test_plain_keeps_image_and_answer_alone() -> None:
    dialogue = PlainPrompt().dialogue(SAMPLE, NAMES, 0)

    assert dialogue.plain
    assert dialogue.turns == (Turn("user", "", images=1), Turn("assistant", "class 3"))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "are missing; user and assistant must alternate"),
        ([Turn("user", "a")], r"are \['user'\]; user and assistant must alternate"),
        ([Turn("assistant", "a"), Turn("user", "b")], "beginning with the user"),
        ([Turn("user", "a"), Turn("assistant", " ")], "Turn 2 of sample 'c' is empty"),
        ([Turn("user", ""), Turn("assistant", "b")], "Turn 1 of sample 'c' is empty"),
        (
            [Turn("user", "a", images=1), Turn("assistant", "b")],
            "1 image placeholders, but the sample has 0 images",
        ),
    ],
)
def test_a_malformed_conversation_is_refused(turns: list[Turn], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ConversationPrompt().dialogue(Sample(id="c", conversation=turns), (), 0)
