"""Exam questions as task files of the information-flow study, so that what reads GQA's also reads the world's.

A task is a CSV file and a folder of JPEG files. The columns are those that "Cross-modal Information Flow in Multimodal
Large Language Models" (CVPR 2025) released, in their order.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_mllm.data.datasets.gqa.rows import ABSENT, COLUMNS, box_columns, objects_of, write_rows
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


def write_task(
    questions: Iterable[ExamQuestion], folder: Path, *, name: str = "Testbed", jpeg_quality: int = 100
) -> Path:
    """Write the questions of one task into `<name>_<Task>.csv`, and their pictures into `images/<img_id>.jpg`.

    GQA's readers add ".jpg" to the id, and JPEG changes pixels. With the highest quality and no subsampling of colours
    it is by a few of 255 levels, less than the picture's own noise; `draw_image` gives the exact pixels. The pictures
    show the scene whatever the part: a file of "blind" questions is like one of "seen" ones.

    Args:
        questions: All of one type, e.g. those of an examination's kinds "seen/ChooseAttr/0" to "seen/ChooseAttr/2".
        folder: Where the file and the folder of pictures go; made if need be.
        name: What stands before the task in the file's name, e.g. "Testbed_held_out".
        jpeg_quality: Pillow's, from 1 to 100.

    Returns:
        The CSV file.

    Raises:
        DataError: There are no questions, they are of several types or of presence, or two have the same id.
    """
    asked = list(questions)
    types = sorted({_question(each).type for each in asked})
    if len(types) != 1:
        found = f"those of {', '.join(types)}" if types else "none"
        raise DataError(f"A task file holds questions of one type; here are {found}. Write one file per type.")
    rows = [row(each) for each in asked]
    ids = [each["img_id"] for each in rows]
    if len(set(ids)) != len(ids):
        twice = next(each for each in ids if ids.count(each) > 1)
        raise DataError(
            f"Two questions of a task file are called {twice!r}. Write examinations into files of their own."
        )
    images = folder / IMAGES
    images.mkdir(parents=True, exist_ok=True)
    for each, question in zip(rows, asked, strict=True):
        picture = draw_image(question.scene)
        picture.save(images / f"{each['img_id']}.jpg", quality=jpeg_quality, subsampling=0)
    return write_rows(folder / f"{name}_{types[0]}.csv", types[0], rows)


def as_gqa(questions: Iterable[ExamQuestion]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return questions and scene graphs as GQA's own JSON files have them, so that what extracts tasks can be tried.

    Raises:
        DataError: One is a question of presence, which has no steps.
    """
    asked, scenes = {}, {}
    for each in questions:
        written, question = row(each), _question(each)
        scenes[written["img_id"]] = each.scene.graph()
        asked[each.id] = {
            "imageId": written["img_id"],
            "question": each.text,
            "answer": each.answer,
            "fullAnswer": written.get("full answer", each.answer),
            "types": {name: written[f"type_{name}"] for name in ("detailed", "semantic", "structural")},
            "semantic": _steps(question),
        }
    return asked, scenes


def row(question: ExamQuestion) -> dict[str, str]:
    """Return a question as the row of its task, in the order of `COLUMNS`.

    An object's name is what the question calls it. Of LogicalObj's two objects, one that is there comes first, and the
    other, if it is absent, has "-" for its id and box. If both are absent, the first takes id and box of the object
    that its words come nearest to: GQA, too, gives the grass for "grass that is not brown".

    Raises:
        DataError: It is a question of presence, which is none of the six tasks.
    """
    asked, scene = _question(question), question.scene
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
        "operations": str(_steps(asked)),
        "captions": caption(scene),
        "image_w": str(SIDE),
        "image_h": str(SIDE),
        **_objects(asked, scene),
    }
    if asked.type is QuestionType.CHOOSE_ATTR:
        values |= _details(asked, scene)
    return {column: values[column] for column in COLUMNS[asked.type]}


def _steps(question: Question) -> list[dict[str, Any]]:
    return [
        {"operation": operation, "dependencies": list(dependencies), "argument": argument}
        for operation, dependencies, argument in question.operations
    ]


def _question(question: ExamQuestion) -> Question:
    if question.question is None:
        raise DataError(
            f"{question.id} ({question.kind}) is none of the six tasks. Leave questions of presence out of task files."
        )
    return question.question


def _objects(question: Question, scene: Scene) -> dict[str, str]:
    """Return names, ids and boxes of one object or two."""
    values = {}
    for name, (reference, thing) in zip(objects_of(question.type), referred(question, scene), strict=True):
        x, y, width, height = thing.box if thing else (ABSENT,) * 4
        values[f"{name} name"] = reference.text
        values[f"{name} id"] = thing.id if thing else ABSENT
        values |= dict(zip(box_columns([name]), map(str, (width, height, x, y)), strict=True))
    return values


def referred(question: Question, scene: Scene) -> list[tuple[Reference, SceneObject | None]]:
    """Return what a question is about, in the order of the columns, each with its object.

    One that is there comes first. If none is, the first takes the object that its words come nearest to.
    """
    first, *others = sorted(question.references, key=lambda reference: reference.thing is None)
    return [(first, first.thing or _nearest(first, scene)), *((other, other.thing) for other in others)]


def _nearest(reference: Reference, scene: Scene) -> SceneObject:
    """Return an object of the shape that an absent one would have; if there is none, one that shares its other word."""
    words = reference.text.split()
    return max(
        scene.objects, key=lambda thing: (thing.shape in words, {thing.color, thing.texture} & {*words} != set())
    )


def _details(question: Question, scene: Scene) -> dict[str, str]:
    """Return the columns that only ChooseAttr has."""
    graph = scene.graph()["objects"]
    (reference,) = question.references
    assert reference.thing is not None
    first, second = question.operations
    return {
        "central object attributes": ", ".join(graph[reference.thing.id]["attributes"]),
        "central object question attribute": question.answer,
        "all objects": _listed(node["name"] for node in graph.values()),
        "all objects attributes": _listed(word for node in graph.values() for word in node["attributes"]),
        "operation_1": str([first[0], first[2]]),
        "operation_2": str([second[0], second[2]]),
        "full answer": f"The {reference.text} is {question.answer}.",
    }


def _listed(words: Iterable[str]) -> str:
    """Return each word once."""
    return ", ".join(dict.fromkeys(words))
