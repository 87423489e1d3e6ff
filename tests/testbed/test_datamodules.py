import pickle
from typing import Any, get_args

import numpy as np
import pytest
import yaml

from lightning_mllm.data.datasets.gqa.rows import objects_of_task_row
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.testbed import HELD_OUT, draw_scene, examination
from lightning_mllm.testbed.datamodules import WorldConversations, WorldQuestions
from lightning_mllm.testbed.language.gqa import row_as_gqa
from lightning_mllm.testbed.training.exams import Part
from lightning_mllm.types import Box, LazyImage, Options, Sample, Segment
from tests.support.command_line import CONFIGS
from tests.support.datamodule_contract import DataModuleContract
from tests.support.world_oracle import judge, pairs_in

SPLITS: tuple[Split, ...] = ("train", "val", "test")
TRAININGS = ("2_language", "3b_vision", "4_aligned", "5_instructed")


class TestTalkAboutPictures(DataModuleContract):
    def make(self, checkpoint: str, **options: Any) -> WorldConversations:
        options |= {"scenes": 10, "val_scenes": 5, "test_scenes": 5, "questions": 2, "lookups": 1}
        return WorldConversations(checkpoint=checkpoint, material="pictures", **options)


class TestTalkAboutNotes(DataModuleContract):
    def make(self, checkpoint: str, **options: Any) -> WorldConversations:
        options |= {
            "scenes": 10,
            "val_scenes": 5,
            "test_scenes": 5,
            "questions": 2,
            "repeated": 0.3,
        }
        return WorldConversations(checkpoint=checkpoint, material="text", **options)


class TestWorldQuestions(DataModuleContract):
    def make(self, checkpoint: str, **options: Any) -> WorldQuestions:
        options |= {
            "per_kind": 1,
            "val_per_kind": 1,
            "train_per_kind": 1,
            "parts": ("presence", "blind", "text"),
        }
        return WorldQuestions(checkpoint=checkpoint, **options)


def talk(**options: Any) -> WorldConversations:
    return WorldConversations(**{"checkpoint": "unused", "material": "pictures", **options})


def questions(part: Part, split: Split = "test", per_kind: int = 2) -> list[Sample]:
    module = WorldQuestions(
        checkpoint="unused",
        parts=(part,),
        per_kind=per_kind,
        val_per_kind=per_kind,
        train_per_kind=per_kind,
    )
    return [*module.load(split)]


def pixels_of(sample: Sample) -> bytes:
    (image,) = sample.images
    assert isinstance(image, LazyImage)
    drawn = image.draw()
    assert drawn.size == image.size
    return drawn.tobytes()


@pytest.mark.parametrize("material", ["pictures", "text"])
def test_a_sample_is_the_same_each_time_it_is_made(material: str) -> None:
    one, other = (talk(material=material, repeated=0.2).load("train") for _ in range(2))
    for index in (0, 7, 19_999, 7):
        first, again, third = one[index], one[index], other[index]
        assert first.id == again.id == third.id
        assert first.conversation == again.conversation == third.conversation
        if material == "pictures":
            assert pixels_of(first) == pixels_of(again) == pixels_of(third)


@pytest.mark.parametrize("config", TRAININGS)
def test_training_mentions_no_held_out_pair_and_no_falsehood(config: str) -> None:
    options = yaml.safe_load((CONFIGS / "testbed_training" / f"{config}.yaml").read_text())["data"][
        "init_args"
    ]
    for sample in WorldConversations(checkpoint="unused", **options).load("train")[:40]:
        scene = draw_scene(sample.id)
        texts = [turn.text for turn in sample.conversation]
        assert not {(thing.color, thing.shape) for thing in scene.objects} & HELD_OUT
        for text, answer in zip(texts[::2], texts[1::2], strict=True):
            assert not (pairs_in(text) | pairs_in(answer)) & HELD_OUT
            question = text.split("\n")[-1]
            if question.startswith("Repeat: "):
                assert question == f"Repeat: {answer}"
                continue
            verdict = judge(scene, question)
            assert verdict.answer == answer
            assert not verdict.mentioned & HELD_OUT


def test_no_conversation_is_about_a_scene_of_the_examination() -> None:
    asked = {question.scene.objects for part in get_args(Part) for question in examination(part, 6)}
    told = {
        draw_scene(sample.id).objects
        for material in ("pictures", "text")
        for split in SPLITS
        for sample in talk(material=material, questions=0).load(split)[:100]
    }

    assert len(asked) > 100 and len(told) > 500
    assert not asked & told


def test_made_samples_travel_to_worker_processes_without_the_datamodule() -> None:
    module = talk()
    module.trainer = (number for number in range(3))  # type: ignore[assignment]  # what a trainer in flight holds

    loaded = pickle.loads(pickle.dumps(module.load("train")))

    assert loaded[3].conversation == module.load("train")[3].conversation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"material": "picture"}, "material is 'picture'; it can be 'text' or 'pictures'"),
        ({"captioned": 30}, "captioned is a share"),
        ({"repeated": -1}, "repeated is a share"),
        ({"foreign": 1.1}, "foreign is a share"),
        ({"questions": -3}, "questions must be at least 0"),
        ({"emphasis": 0}, "emphasis must be at least 1"),
        ({"val_scenes": 0}, "val_scenes is 0"),
    ],
)
def test_options_that_can_not_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        talk(**options)


def test_a_part_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="held_out"):
        questions("helt_out", "test")  # type: ignore[arg-type]


def test_pictures_show_the_scene_and_texts_have_none() -> None:
    from lightning_mllm.testbed import draw_image

    shown = talk().load("val")[0]
    assert pixels_of(shown) == draw_image(draw_scene(shown.id)).tobytes()
    assert [turn.images for turn in shown.conversation] == [1] + [0] * (len(shown.conversation) - 1)

    written = talk(material="text").load("val")[0]
    assert not written.images
    assert all(turn.images == 0 for turn in written.conversation)


@pytest.mark.parametrize("part", ["seen", "held_out"])
def test_questions_have_the_boxes_and_options_of_their_rows(part: Part) -> None:
    asked = {each.id: each for each in examination(part, 4)}
    for sample in questions(part, per_kind=4):
        written = row_as_gqa(asked[sample.id])
        names = [
            name
            for name in objects_of_task_row(str(sample.kind).split("/")[1])
            if written[f"{name} x"] != "-"
        ]
        assert sample.boxes == [
            Box(*(int(written[f"{name} {field}"]) for field in "xywh")) for name in names
        ]
        assert sample.boxes
        everything = {Box(*thing.box) for thing in asked[sample.id].scene.objects}
        assert everything - {*sample.boxes} == {*sample.distractors}
        options = (
            Options(written["true option"], written["false option"])
            if "true option" in written
            else None
        )
        assert sample.options == options


def test_what_is_not_to_be_seen_has_no_box() -> None:
    for part in ("blind", "text", "presence"):
        asked = questions(part, per_kind=2)
        assert not any((*sample.boxes, *sample.distractors) for sample in asked)
        assert any(sample.options for sample in asked) == (part != "presence")


def test_each_part_has_its_options_in_its_question(tiny_llava: str) -> None:
    module = WorldQuestions(checkpoint=tiny_llava, parts=("seen", "text"), per_kind=1)
    module.setup("test")
    for batch in module.test_dataloader():
        chosen = ["Choose" in str(kind) for kind in batch.kinds]
        assert batch.spans[Segment.TRUE_OPTION].any(dim=1).tolist() == chosen
        assert batch.spans[Segment.FALSE_OPTION].any(dim=1).tolist() == chosen
        seen = [str(kind).startswith("seen") for kind in batch.kinds]
        assert batch.spans[Segment.IMAGE_OBJECT].any(dim=1).tolist() == seen
        assert [
            answers is not None and answers.false is not None for answers in batch.answers
        ] == chosen


def test_blind_questions_have_a_picture_of_nothing() -> None:
    for sample in questions("blind", per_kind=1):
        pixels = np.frombuffer(pixels_of(sample), dtype=np.uint8)
        assert pixels.max() <= 95 + 20 + 12


def test_questions_in_text_come_with_the_facts() -> None:
    for sample in questions("text"):
        turn, answer = sample.conversation
        facts, question = turn.text.split("\n")
        scene = draw_scene(sample.id, objects=(2, 5))
        assert not sample.images
        assert len(facts.split(", ")) == len(scene.objects)
        assert judge(scene, question).answer == answer.text


def test_shares_are_kept() -> None:
    captioned = [
        sample.conversation[0].text.startswith("Describe the picture")
        for sample in talk().load("train")[:300]
    ]
    repeated = [
        sample.conversation[0].text.startswith("Repeat:")
        for sample in talk(material="text", repeated=0.25, questions=1).load("train")[:300]
    ]

    foreign = [
        any(turn.text.startswith("Repeat:") for turn in sample.conversation)
        for sample in talk(foreign=0.25, mixed=True, questions=1).load("train")[:300]
    ]

    assert abs(sum(foreign) / 300 - 0.25) < 0.1
    assert abs(sum(captioned) / 300 - 0.5) < 0.12
    assert abs(sum(repeated) / 300 - 0.25) < 0.1


def test_there_is_always_something_to_say() -> None:
    for sample in talk(objects=(1, 1), captioned=0.0, questions=0).load("val")[:20]:
        assert len(sample.conversation) == 2


def test_mixed_conversations_say_the_same_in_another_order() -> None:
    options: dict[str, Any] = {"scenes": 20, "captioned": 1.0, "lookups": 2, "questions": 6}
    plain, mixed = (talk(mixed=mixed, **options).load("train") for mixed in (False, True))

    def exchanges(sample: Sample) -> list[tuple[str, str]]:
        turns = [turn.text for turn in sample.conversation]
        return list(zip(turns[::2], turns[1::2], strict=True))

    pairs = [(exchanges(one), exchanges(other)) for one, other in zip(plain, mixed, strict=True)]
    assert all(sorted(one) == sorted(other) for one, other in pairs)
    assert (
        len({one[0][0] for one, _ in pairs})
        == 1
        < len({other[0][0].split()[0] for _, other in pairs})
    )


def test_hard_questions_get_more_turns() -> None:
    def hard(emphasis: int) -> int:
        samples = talk(
            scenes=40, captioned=0.0, questions=12, emphasis=emphasis, objects=(3, 5)
        ).load("train")
        return sum(
            turn.text.startswith("Is there") for sample in samples for turn in sample.conversation
        )

    assert hard(2) > 1.2 * hard(1) > 0


def test_seeds_make_other_worlds() -> None:
    first, second = (talk(world_seed=seed).load("train") for seed in (0, 1))

    assert first[0].id != second[0].id
    assert pixels_of(first[0]) != pixels_of(second[0])
