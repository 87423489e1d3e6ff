"""The six tasks from questions and scene graphs: of the test-bed and released, in GQA's form."""

import ast
import csv
import json
import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.data.datasets.gqa.extraction import RULES, extract_tasks, write_extracted_tasks
from lightning_mllm.data.datasets.gqa.rows import (
    COLUMNS,
    box_columns_of_task_row,
    objects_of_task_row,
    read_task_rows,
)
from lightning_mllm.errors import DataError
from lightning_mllm.testbed import ExamQuestion, QuestionType, examination
from lightning_mllm.testbed.language.gqa import questions_as_gqa, row_as_gqa
from tests.data.datasets.gqa.test_tasks import RELEASED, released

NOT_SAID = (
    "captions",
    "full answer",
)  # captions are another data set's; the world's questions have no full answer

every_task = pytest.mark.parametrize("task", RULES)


def asked(task: str, count: int = 24) -> list[ExamQuestion]:
    """Return questions of a task as GQA would ask them: of its detailed types, about an object."""
    questions = [
        each for each in examination("seen", count) if each.question and each.question.type == task
    ]
    return [
        each
        for each in questions
        if each.question
        and each.question.detailed in RULES[task].detailed
        and any(reference.thing for reference in each.question.references)
    ]


@every_task
def test_what_the_world_asks_comes_back(task: str) -> None:
    questions = asked(task)

    found = extract_tasks(*questions_as_gqa(questions))

    assert [each for each in found if found[each]] == [task]
    assert len(found[task]) == len(questions) > 10
    for extracted, written in zip(found[task], map(row_as_gqa, questions), strict=True):
        assert tuple(extracted) == COLUMNS[task]
        unlike = {column for column in COLUMNS[task] if extracted[column] != written[column]}
        if (
            task == QuestionType.LOGICAL_OBJ
        ):  # whose names have the attribute too, in the world's rows
            unlike -= {"object1 name", "object2 name"}
            assert written["object1 name"].endswith(extracted["object1 name"])
        assert unlike <= {*NOT_SAID}


@released
@pytest.mark.parametrize("task", ["ChooseAttr", "ChooseCat", "CompareAttr", "QueryAttr"])
def test_what_the_study_released_comes_back(task: str) -> None:
    (file,) = RELEASED.glob(f"*_{task}.csv")
    with file.open(newline="", encoding="utf-8") as lines:
        rows = [*csv.DictReader(lines)]
    questions, scenes = zip(*map(in_gqas_form, rows), strict=True)

    found = extract_tasks(
        {each["question_id"]: question for each, question in zip(rows, questions, strict=True)},
        {
            each["img_id"] + each["question_id"]: scene
            for each, scene in zip(rows, scenes, strict=True)
        },
    )[task]

    unsaid = {"captions", "img_id", "all objects", "all objects attributes"}
    said = [column for column in COLUMNS[task] if column not in unsaid]
    assert [[each[column] for column in said] for each in found] == [
        [each[column] for column in said] for each in rows
    ]


def in_gqas_form(cells: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a released row as a question and the part of its scene graph that the row tells."""
    names = objects_of_task_row(next(task for task in COLUMNS if tuple(cells) == COLUMNS[task]))
    attributes = cells.get("central object attributes", "").split(", ")
    things = {}
    for name in names:
        box = {column[-1]: int(cells[column]) for column in box_columns_of_task_row([name])}
        things[cells[f"{name} id"]] = {
            "name": cells[f"{name} name"],
            "attributes": attributes,
            **box,
        }
    question = {
        "imageId": cells["img_id"] + cells["question_id"],
        "question": cells["question"],
        "answer": cells["answer"],
        "fullAnswer": cells.get("full answer", ""),
        "types": {name: cells[f"type_{name}"] for name in ("detailed", "semantic", "structural")},
        "semantic": ast.literal_eval(cells["operations"]),
    }
    return question, {
        "width": int(cells["image_w"]),
        "height": int(cells["image_h"]),
        "objects": things,
    }


SURFER: dict[str, Any] = {
    "imageId": "5",
    "question": "Is the surfer in front of or behind the surfboard?",
    "answer": "in front of",
    "types": {"detailed": "relChooser", "semantic": "rel", "structural": "choose"},
    "semantic": [
        {"operation": "select", "dependencies": [], "argument": "surfboard (1)"},
        {
            "operation": "choose rel",
            "dependencies": [0],
            "argument": "surfer,behind|in front of,s (2)",
        },
    ],
}
BOX = {"x": 0, "y": 1, "w": 2, "h": 3, "name": "thing", "attributes": []}
SEA = {"width": 30, "height": 40, "objects": {"1": BOX, "2": {**BOX, "x": 9}}}


def test_relations_are_shortened_and_the_anchor_comes_first() -> None:
    (found,) = extract_tasks({"07": SURFER}, {"5": SEA})["ChooseRel"]

    assert (found["question_id"], found["answer"]) == ("07", "front")
    assert (found["true option"], found["false option"]) == ("front", "behind")
    assert (found["object1 name"], found["object2 name"]) == ("surfboard", "surfer")
    assert (found["object1 x"], found["object2 x"]) == ("0", "9")


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """Return the surfer's question with another value somewhere."""
    question = deepcopy(SURFER)
    inner: Any = question
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return question


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("answer",), "to the left of"),
        (("semantic", 1, "argument"), "surfer,in front of|in front of,s (2)"),
        (("semantic", 1, "argument"), "surfer,behind|in front of,s (3)"),
        (("semantic", 0, "argument"), "surfboards (1,2)"),
        (("semantic", 0, "argument"), "surfboard (-)"),
        (("imageId",), "6"),
    ],
)
def test_what_can_not_be_told_is_left_out_and_counted(
    path: tuple[Any, ...], value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = extract_tasks({"7": changed(path, value), "8": SURFER}, {"5": SEA})

    assert [each["question_id"] for each in found["ChooseRel"]] == ["8"]
    assert caplog.messages == [
        "ChooseRel: 1 questions have objects or options that can't be found, and are left out"
    ]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("types", "detailed"), "relVerify"),
        (("types", "structural"), "verify"),
        (("semantic", 1, "operation"), "verify rel"),
        (("semantic",), [*SURFER["semantic"], SURFER["semantic"][1]]),
    ],
)
def test_other_questions_belong_to_no_task(path: tuple[Any, ...], value: Any) -> None:
    assert not any(extract_tasks({"7": changed(path, value)}, {"5": SEA}).values())


def test_files_are_written_that_the_reader_reads(tmp_path: Path) -> None:
    questions = [*asked("ChooseRel", 3), *asked("QueryAttr", 3)]
    files = tmp_path / "questions.json", tmp_path / "scenes.json"
    for file, content in zip(files, questions_as_gqa(questions), strict=True):
        file.write_text(json.dumps(content), encoding="utf-8")

    written = write_extracted_tasks([files[0]], files[1], tmp_path / "tasks", name="World")

    assert [file.name for file in written] == ["World_ChooseRel.csv", "World_QueryAttr.csv"]
    read = [each for file in written for each in read_task_rows(file)]
    assert [each.question_id for each in read] == [each.id for each in questions]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"questions.json can't be read as JSON: .* Correct the path, or fetch"),
        ("[]", r"questions.json holds a list, but GQA's files hold an object with ids as its keys"),
        (
            "{}",
            r"None of 0 questions belongs to a task. Give GQA's question files, and their scenes",
        ),
        (
            '{"7": {"imageId": "5"}}',
            r"The question '7', or .* is not in GQA's format: KeyError\('types'\)",
        ),
        (None, r"questions.json can't be read as JSON: .*No such file"),
    ],
)
def test_files_that_are_none_of_gqas_are_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    questions, scenes = tmp_path / "questions.json", tmp_path / "scenes.json"
    scenes.write_text(json.dumps({"5": SEA}))
    if content is not None:
        questions.write_text(content)

    with pytest.raises(DataError, match=message):
        write_extracted_tasks([questions], scenes, tmp_path)
