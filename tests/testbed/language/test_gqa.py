import ast
import csv
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_mllm.data import GQATasks
from lightning_mllm.data.datasets.gqa.rows import COLUMNS
from lightning_mllm.errors import DataError
from lightning_mllm.testbed import ExamQuestion, QuestionType, draw_image, examination
from lightning_mllm.testbed.datamodules import WorldQuestions
from lightning_mllm.testbed.language.gqa import IMAGES, row_as_gqa, write_questions_as_gqa
from lightning_mllm.testbed.training.exams import Part
from lightning_mllm.testbed.world.scenes import SIDE

RELEASED = (
    Path(__file__).parents[4] / "shared" / "data" / "gqa_knockout"
)  # files of the study, where there are some
TYPES = {
    QuestionType.CHOOSE_ATTR: ("attr", "choose"),
    QuestionType.CHOOSE_CAT: ("cat", "choose"),
    QuestionType.CHOOSE_REL: ("rel", "choose"),
    QuestionType.COMPARE_ATTR: ("attr", "compare"),
    QuestionType.LOGICAL_OBJ: ("obj", "logical"),
    QuestionType.QUERY_ATTR: ("attr", "query"),
}
BOX = "whxy"

every_type = pytest.mark.parametrize("type", QuestionType)


def asked(type: QuestionType, part: Part = "seen", count: int = 12) -> list[ExamQuestion]:
    return [
        each for each in examination(part, count) if each.question and each.question.type is type
    ]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@every_type
def test_columns_are_those_of_the_released_file(type: QuestionType) -> None:
    found = [*RELEASED.glob(f"*_{type}.csv")]
    if not found:
        pytest.skip(f"the study's file of {type} is not in {RELEASED}")
    with found[0].open(newline="", encoding="utf-8") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS[type]


def test_columns_of_two_objects_are_those_of_the_study() -> None:
    start, names = (
        "question_id,img_id,question,answer",
        "object1 name,object1 id,object2 name,object2 id",
    )
    kinds = "type_detailed,type_semantic,type_structural,operations,captions,image_w,image_h"
    boxes = "object1 w,object1 h,object1 x,object1 y,object2 w,object2 h,object2 x,object2 y"

    assert (
        ",".join(COLUMNS[QuestionType.CHOOSE_REL])
        == f"{start},true option,false option,{names},{kinds},{boxes}"
    )
    assert (
        ",".join(COLUMNS[QuestionType.LOGICAL_OBJ])
        == f"{start},{names},question word,{kinds},{boxes}"
    )


@every_type
@pytest.mark.parametrize("part", ["seen", "held_out"])
def test_a_row_says_what_the_question_says(type: QuestionType, part: Part) -> None:
    for each in asked(type, part):
        assert each.question is not None
        written = row_as_gqa(each)

        assert tuple(written) == COLUMNS[type]
        assert (written["question_id"], written["question"], written["answer"]) == (
            each.id,
            each.text,
            each.answer,
        )
        assert (written["type_semantic"], written["type_structural"]) == TYPES[type]
        assert (written["image_w"], written["image_h"]) == (str(SIDE), str(SIDE))
        if "true option" in written:
            assert (written["true option"], written["false option"]) == (
                each.answer,
                each.question.other_option,
            )
        steps = ast.literal_eval(written["operations"])
        assert [
            (step["operation"], tuple(step["dependencies"]), step["argument"]) for step in steps
        ] == [*each.question.operations]


@every_type
def test_objects_have_the_words_and_boxes_of_the_scene(type: QuestionType) -> None:
    for each in asked(type):
        written = row_as_gqa(each)
        things = {thing.id: thing for thing in each.scene.objects}
        for name in ("central object", "object1", "object2"):
            if f"{name} id" not in written:
                continue
            box = tuple(written[f"{name} {field}"] for field in BOX)
            assert written[f"{name} name"] in each.text
            if written[f"{name} id"] == "-":
                assert (type, name) == (QuestionType.LOGICAL_OBJ, "object2")
                assert box == ("-",) * 4
            else:
                x, y, width, height = things[written[f"{name} id"]].box
                assert box == tuple(map(str, (width, height, x, y)))


def test_the_first_object_of_a_relation_is_the_anchor() -> None:
    for each in asked(QuestionType.CHOOSE_REL):
        written = row_as_gqa(each)
        (select, _) = ast.literal_eval(written["operations"])
        assert select["argument"] == f"{written['object1 name']} ({written['object1 id']})"
        assert each.text.endswith(f"the {written['object1 name']}?")


def test_of_two_objects_one_that_is_there_comes_first() -> None:
    for each in asked(QuestionType.LOGICAL_OBJ, count=60):
        assert each.question is not None
        written = row_as_gqa(each)
        there = [reference for reference in each.question.references if reference.thing]
        if there:
            assert there[0].thing is not None
            assert (written["object1 name"], written["object1 id"]) == (
                there[0].text,
                there[0].thing.id,
            )
        else:
            (thing,) = [thing for thing in each.scene.objects if thing.id == written["object1 id"]]
            modifier, shape = written["object1 name"].split()
            shapes = {other.shape for other in each.scene.objects}
            assert (
                thing.shape == shape
                if shape in shapes
                else modifier in (thing.color, thing.texture)
            )


def test_details_of_a_chosen_attribute() -> None:
    for each in asked(QuestionType.CHOOSE_ATTR):
        written = row_as_gqa(each)
        attributes = written["central object attributes"].split(", ")
        assert written["central object question attribute"] == each.answer
        assert each.answer in attributes
        assert {*attributes} <= {*written["all objects attributes"].split(", ")}
        assert {*written["all objects"].split(", ")} == {
            thing.shape for thing in each.scene.objects
        }
        steps = ast.literal_eval(written["operations"])
        for number, step in enumerate(steps, start=1):
            assert ast.literal_eval(written[f"operation_{number}"]) == [
                step["operation"],
                step["argument"],
            ]
        assert written["full answer"] == f"The {written['central object name']} is {each.answer}."


@every_type
def test_a_file_reads_back(type: QuestionType, tmp_path: Path) -> None:
    questions = asked(type, count=3)

    path = write_questions_as_gqa(questions, tmp_path / "tasks", name="Testbed_held_out")

    assert path == tmp_path / "tasks" / f"Testbed_held_out_{type}.csv"
    assert path.stem.split("_")[-1] == type
    assert read(path) == [row_as_gqa(each) for each in questions]
    assert len({each["question_id"] for each in read(path)}) == len(questions)
    pictures = {f"{each['img_id']}.jpg" for each in read(path)}
    assert {picture.name for picture in (tmp_path / "tasks" / "images").iterdir()} == pictures


def test_pictures_lose_less_than_their_noise(tmp_path: Path) -> None:
    questions = asked(QuestionType.CHOOSE_CAT, count=6)
    path = write_questions_as_gqa(questions, tmp_path)
    for each, written in zip(questions, read(path), strict=True):
        with Image.open(tmp_path / "images" / f"{written['img_id']}.jpg") as image:
            assert image.format == "JPEG"
            lost = np.asarray(image).astype(int) - np.asarray(draw_image(each.scene)).astype(int)
        assert abs(lost).max() <= 8
        assert np.sqrt((lost**2).mean()) < 1.5


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], "here are none. Write one file per type"),
        (
            [*asked(QuestionType.CHOOSE_CAT, count=1), *asked(QuestionType.QUERY_ATTR, count=1)],
            "here are those of ChooseCat, QueryAttr",
        ),
        ([*examination("presence", 1)], r"presence/random\) is not one of the six tasks"),
        (
            asked(QuestionType.CHOOSE_CAT, count=1) * 2,
            "Two questions .* have the id '0-test-seen-ChooseCat-0-",
        ),
    ],
    ids=["none", "mixed", "presence", "twice"],
)
def test_what_is_not_one_task_is_refused(
    questions: list[ExamQuestion], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        write_questions_as_gqa(questions, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_names_of_pictures_are_names_of_files() -> None:
    questions = [*chain.from_iterable(asked(type, count=4) for type in QuestionType)]
    names = {row_as_gqa(each)["img_id"] for each in questions}

    assert len(names) == len(questions)
    assert not any({*name} & {*'/\\:*?"<>| '} for name in names)


def test_the_reader_of_gqas_files_reads_the_worlds(tmp_path: Path) -> None:
    asked_, files = [], []
    for type in QuestionType:
        files.append(str(write_questions_as_gqa(asked(type, count=2), tmp_path)))
        asked_ += asked(type, count=2)

    samples = GQATasks(checkpoint="unused", files=files, image_root=str(tmp_path / IMAGES)).load(
        "test"
    )

    world = {
        each.id: each
        for each in WorldQuestions(checkpoint="unused", parts=("seen",), per_kind=2).load("test")
    }
    assert [sample.id for sample in samples] == [each.id for each in asked_]
    for sample in samples:
        assert (sample.conversation, sample.options) == (
            world[sample.id].conversation,
            world[sample.id].options,
        )
        assert [*sample.boxes] == [*world[sample.id].boxes]
        assert sample.kind == str(world[sample.id].kind).split("/")[1]
