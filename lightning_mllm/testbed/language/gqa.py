"""Exam questions as task files of the information-flow study, for the code that reads GQA's files.

A task is a CSV file and a folder of JPEG files. The columns are those that "Cross-modal Information
Flow in Multimodal Large Language Models" (CVPR 2025) released, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_mllm.data.datasets.gqa.rows import (
    ABSENT,
    COLUMNS,
    box_columns_of_task_row,
    objects_of_task_row,
    write_task_rows,
)
from lightning_mllm.errors import DataError
from lightning_mllm.testbed.language.captions import caption
from lightning_mllm.testbed.language.questions import Question, QuestionType
from lightning_mllm.testbed.language.references import Reference
from lightning_mllm.testbed.training.exams import ExamQuestion
from lightning_mllm.testbed.world.canvas import draw_image
from lightning_mllm.testbed.world.scenes import SIDE, Scene, SceneObject

IMAGES = "images"

_SEMANTIC_STRUCTURAL = {
    QuestionType.CHOOSE_ATTR: ("attr", "choose"),
    QuestionType.CHOOSE_CAT: ("cat", "choose"),
    QuestionType.CHOOSE_REL: ("rel", "choose"),
    QuestionType.COMPARE_ATTR: ("attr", "compare"),
    QuestionType.LOGICAL_OBJ: ("obj", "logical"),
    QuestionType.QUERY_ATTR: ("attr", "query"),
}


def write_questions_as_gqa(
    questions: Iterable[ExamQuestion],
    folder: Path,
    *,
    name: str = "Testbed",
    jpeg_quality: int = 100,
) -> Path:
    """Write questions to `<name>_<Task>.csv`, and their pictures to `images/<img_id>.jpg`.

    GQA's readers add ".jpg" to the id, and JPEG changes pixels. With the highest quality and
    without chroma subsampling, they change by a few of 255 levels, less than the picture's own
    noise; `draw_image` gives the exact pixels. The pictures show the scene in every part: a file of
    "blind" questions is like one of "seen" questions.

    Args:
        questions: Questions of one type, e.g. an examination's kinds "seen/ChooseAttr/0" to
            "seen/ChooseAttr/2".
        folder: Folder of the file and of the folder of pictures; created if needed.
        name: Beginning of the file's name, e.g. "Testbed_held_out".
        jpeg_quality: Quality of the JPEG files, from 1 to 100, as in Pillow.

    Returns:
        The CSV file.

    Raises:
        DataError: There are no questions, they are of several types or of presence, or two have
            the same id.
    """
    asked = list(questions)
    types = sorted({_typed_question(each).type for each in asked})
    if len(types) != 1:
        found = f"those of {', '.join(types)}" if types else "none"
        raise DataError(
            f"A task file holds questions of one type; here are {found}. Write one file per type."
        )
    rows = [row_as_gqa(each) for each in asked]
    ids = [each["img_id"] for each in rows]
    if len(set(ids)) != len(ids):
        twice = next(each for each in ids if ids.count(each) > 1)
        raise DataError(
            f"Two questions of a task file have the id {twice!r}. Write each examination into a "
            "file of its own."
        )
    images = folder / IMAGES
    images.mkdir(parents=True, exist_ok=True)
    for each, question in zip(rows, asked, strict=True):
        picture = draw_image(question.scene)
        picture.save(images / f"{each['img_id']}.jpg", quality=jpeg_quality, subsampling=0)
    return write_task_rows(folder / f"{name}_{types[0]}.csv", types[0], rows)


def questions_as_gqa(questions: Iterable[ExamQuestion]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return questions and scene graphs as in GQA's own JSON files, to try the extraction of tasks.

    Raises:
        DataError: There is a question of presence, which has no steps.
    """
    asked, scenes = {}, {}
    for each in questions:
        written, question = row_as_gqa(each), _typed_question(each)
        scenes[written["img_id"]] = each.scene.graph()
        asked[each.id] = {
            "imageId": written["img_id"],
            "question": each.text,
            "answer": each.answer,
            "fullAnswer": written.get("full answer", each.answer),
            "types": {
                "detailed": written["type_detailed"],
                "semantic": written["type_semantic"],
                "structural": written["type_structural"],
            },
            "semantic": _list_steps(question),
        }
    return asked, scenes


def row_as_gqa(question: ExamQuestion) -> dict[str, str]:
    """Return a question as the row of its task, in the order of `COLUMNS`.

    The name of an object is what the question calls it. LogicalObj has two objects: one that is
    there comes first; the other, if it is absent, has "-" for its id and box. If both are absent,
    the first takes id and box of the object that its words fit best: GQA, too, gives the grass for
    "grass that is not brown".

    Raises:
        DataError: It is a question of presence, which is not one of the six tasks.
    """
    asked, scene = _typed_question(question), question.scene
    semantic, structural = _SEMANTIC_STRUCTURAL[asked.type]
    values = {
        "question_id": question.id,
        "img_id": question.scene.id.replace("/", "-"),
        "question": question.text,
        "answer": question.answer,
        "true option": question.answer,
        "false option": asked.other_option,
        "question word": "common",  # in every row of GQA's files
        "type_detailed": asked.detailed,
        "type_semantic": semantic,
        "type_structural": structural,
        "operations": str(_list_steps(asked)),
        "captions": caption(scene),
        "image_w": str(SIDE),
        "image_h": str(SIDE),
        **_object_columns(asked, scene),
    }
    if asked.type is QuestionType.CHOOSE_ATTR:
        values |= _choose_attr_columns(asked, scene)
    return {column: values[column] for column in COLUMNS[asked.type]}


def _list_steps(question: Question) -> list[dict[str, Any]]:
    return [
        {"operation": operation, "dependencies": list(dependencies), "argument": argument}
        for operation, dependencies, argument in question.operations
    ]


def _typed_question(question: ExamQuestion) -> Question:
    """Return the question with its structure."""
    if question.question is None:
        raise DataError(
            f"{question.id} ({question.kind}) is not one of the six tasks. Leave questions of "
            "presence out of task files."
        )
    return question.question


def _object_columns(question: Question, scene: Scene) -> dict[str, str]:
    """Return names, ids and boxes of one object or two."""
    values = {}
    found = find_references_for_gqa(question, scene)
    for name, (reference, thing) in zip(objects_of_task_row(question.type), found, strict=True):
        x, y, width, height = thing.box if thing else (ABSENT,) * 4
        values[f"{name} name"] = reference.text
        values[f"{name} id"] = thing.id if thing else ABSENT
        values |= dict(
            zip(box_columns_of_task_row([name]), map(str, (width, height, x, y)), strict=True)
        )
    return values


def find_references_for_gqa(
    question: Question, scene: Scene
) -> list[tuple[Reference, SceneObject | None]]:
    """Return the references of a question, in the order of the columns, each with its object.

    A reference whose object is there comes first. If none is there, the first reference takes the
    object that its words fit best.
    """
    first, *others = sorted(question.references, key=lambda reference: reference.thing is None)
    nearest = first.thing or _find_nearest(first, scene)
    return [(first, nearest), *((other, other.thing) for other in others)]


def _find_nearest(reference: Reference, scene: Scene) -> SceneObject:
    """Return an object with the shape of an absent one; if there is none, with its other word."""
    words = {*reference.text.split()}

    def rate_fit(thing: SceneObject) -> tuple[bool, bool]:
        return thing.shape in words, bool({thing.color, thing.texture} & words)

    return max(scene.objects, key=rate_fit)


def _choose_attr_columns(question: Question, scene: Scene) -> dict[str, str]:
    """Return the columns that only ChooseAttr has."""
    graph = scene.graph()["objects"]
    (reference,) = question.references
    assert reference.thing is not None
    first, second = question.operations
    attributes: list[str] = []
    for node in graph.values():
        attributes += node["attributes"]
    return {
        "central object attributes": ", ".join(graph[reference.thing.id]["attributes"]),
        "central object question attribute": question.answer,
        "all objects": _join_unique(node["name"] for node in graph.values()),
        "all objects attributes": _join_unique(attributes),
        "operation_1": str([first[0], first[2]]),
        "operation_2": str([second[0], second[2]]),
        "full answer": f"The {reference.text} is {question.answer}.",
    }


def _join_unique(words: Iterable[str]) -> str:
    """Return the words, each once, with commas between them."""
    return ", ".join(dict.fromkeys(words))
