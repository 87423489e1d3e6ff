"""The six tasks of the information-flow study, taken from GQA's own questions and scene graphs.

GQA (Hudson and Manning, CVPR 2019) gives each question types, the steps of its reasoning with the
ids of the objects that they are about, and a scene graph with the boxes of these objects. The rules
are those that the released files follow; which of the fitting questions were released is a choice
of their authors that no rule describes.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mllm.data.datasets.gqa.rows import (
    ABSENT,
    COLUMNS,
    OPTIONS,
    box_columns_of_task_row,
    objects_of_task_row,
    write_task_rows,
)
from lightning_mllm.errors import DataError
from lightning_mllm.progress import show_progress, track

Json = Mapping[str, Any]
Rows = list[dict[str, str]]

_SELECTED = re.compile(r"(?P<name>.*) \((?P<id>[^()]*)\)\s*")  # e.g. "jar (496168)"
_RELATED = re.compile(r"(?P<name>.*),(?P<one>[^,|]+)\|(?P<other>[^,|]+),[so] \((?P<id>[^()]*)\)\s*")
_FILLERS = {"to", "the", "of", "in"}  # "to the left of" is the option "left"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Rule:
    """What a question must have to belong to a task.

    Attributes:
        semantic: The semantic type that GQA gives the question.
        structural: The structural type that GQA gives the question.
        detailed: The detailed types of which GQA gives it one.
        steps: Pattern of the operations, with "/" after each.
        argument: The argument of the last step; empty if it may be any.
    """

    semantic: str
    structural: str
    detailed: tuple[str, ...]
    steps: str
    argument: str = ""

    def fits(self, question: Json) -> bool:
        types, steps = question["types"], question["semantic"]
        operations = "".join(f"{step['operation']}/" for step in steps)
        return (
            (types["semantic"], types["structural"]) == (self.semantic, self.structural)
            and types["detailed"] in self.detailed
            and re.fullmatch(self.steps, operations) is not None
            and self.argument in ("", steps[-1]["argument"])
        )


RULES: Mapping[str, _Rule] = {
    "ChooseAttr": _Rule(
        "attr",
        "choose",
        ("chooseAttr", "materialChoose", "typeChoose", "activityChoose"),
        r"select/choose[^/]*/",
    ),
    "ChooseCat": _Rule(
        "cat",
        "choose",
        ("objThisChoose", "categoryThatChoose", "categoryThisChoose"),
        r"select/(filter[^/]*/)*choose[^/]*/",
    ),
    "ChooseRel": _Rule("rel", "choose", ("relChooser",), r"select/choose rel/"),
    "CompareAttr": _Rule("attr", "compare", ("twoCommon",), r"select/select/common/"),
    "LogicalObj": _Rule(
        "obj",
        "logical",
        ("existThatOr", "existThatOrC"),
        r"(select/filter[^/]*/exist/){2}or/",
    ),
    "QueryAttr": _Rule("attr", "query", ("positionQuery",), r"select/query/", "hposition"),
}


def extract_tasks(questions: Json, scenes: Json) -> dict[str, Rows]:
    """Return task -> rows with the columns of its released file, in the order of the questions.

    Two columns are empty or in another order than in the released files: captions are Visual
    Genome's, which is another dataset, and objects and attributes of a scene are listed in the
    scene graph's order.

    Questions whose steps name an object that the scene graph does not have, or whose options are
    not two of which one is the answer, are left out, and their number is logged.

    Args:
        questions: Question id -> question, as in GQA's `val_balanced_questions.json`.
        scenes: Image id -> scene graph, as in `val_sceneGraphs.json`.

    Raises:
        DataError: A question or scene lacks what GQA's have.
    """
    tasks: dict[str, Rows] = {task: [] for task in RULES}
    left_out: Counter[str] = Counter()
    for name, question in track(questions.items(), "Questions"):
        try:
            task = next((task for task, rule in RULES.items() if rule.fits(question)), None)
            if task is None:
                continue
            row = _make_row(task, name, question, scenes.get(question["imageId"]))
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"The question {name!r}, or the scene graph of its image, is not in GQA's format: "
                f"{error!r}. Give GQA's questions with their steps (`semantic`) and types, and its "
                "scene graphs."
            ) from error
        if row is None:
            left_out[task] += 1
        else:
            tasks[task].append({column: row[column] for column in COLUMNS[task]})
    for task, count in left_out.items():
        logger.warning(
            "%s: %d questions have objects or options that can't be found, and are left out",
            task,
            count,
        )
    return tasks


def write_extracted_tasks(
    questions: Iterable[Path], scenes: Path, folder: Path, name: str = "GQA"
) -> list[Path]:
    """Extract tasks from GQA's files into `<name>_<Task>.csv`, one per task that has questions.

    Args:
        questions: Files with GQA's questions.
        scenes: GQA's file of scene graphs.
        folder: Folder for the files; created if need be.
        name: What stands before the task in the files' names.

    Raises:
        DataError: A file is missing or not in GQA's format, or no question fits.
    """
    asked: dict[str, Any] = {}
    for file in track([*questions], "Reading question files"):
        asked |= _load(file)
    with show_progress("Reading scene graphs"):
        graphs = _load(scenes)
    tasks = extract_tasks(asked, graphs)
    if not any(tasks.values()):
        raise DataError(
            f"None of {len(asked)} questions belongs to a task. Give GQA's question files, and "
            "their scenes."
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for task, rows in tasks.items():
        if rows:
            written.append(write_task_rows(folder / f"{name}_{task}.csv", task, rows))
    return written


def _load(file: Path) -> Json:
    """Return the JSON object of a file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} can't be read as JSON: {error}. Correct the path, or fetch the file again."
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"{file} holds a {type(content).__name__}, but GQA's files hold an object with ids as "
            "its keys."
        )
    return content


def _make_row(task: str, name: str, question: Json, scene: Json | None) -> dict[str, str] | None:
    """Return all that a task's file says of a question; None without its objects or options."""
    steps, types = question["semantic"], question["types"]
    objects = _find_objects(task, steps, scene["objects"]) if scene else None
    options = _find_options(task, question)
    if scene is None or objects is None or options is None:
        return None
    keys = ("operation", "dependencies", "argument")
    row = {
        "question_id": name,
        "img_id": str(question["imageId"]),
        "question": question["question"],
        "answer": options[0],
        **dict(zip(OPTIONS, options, strict=True)),
        "question word": "common",  # in every row of the released files
        "type_detailed": types["detailed"],
        "type_semantic": types["semantic"],
        "type_structural": types["structural"],
        "operations": str([_pick_keys(step, keys) for step in steps]),
        "captions": "",
        "image_w": str(scene["width"]),
        "image_h": str(scene["height"]),
    }
    for column, (called, key) in zip(objects_of_task_row(task), objects, strict=True):
        box = [ABSENT] * 4
        if key != ABSENT:
            box = [str(scene["objects"][key][field]) for field in "whxy"]
        row |= {f"{column} name": called, f"{column} id": key}
        row |= zip(box_columns_of_task_row([column]), box, strict=True)
    if task == "ChooseAttr":
        row |= _describe_scene(question, scene, objects[0][1])
    return row


def _pick_keys(step: Json, keys: Sequence[str]) -> dict[str, Any]:
    return {key: step[key] for key in keys}


def _find_objects(task: str, steps: Sequence[Json], known: Json) -> list[tuple[str, str]] | None:
    """Return names and ids of the objects, one that is in the picture first.

    Returns:
        None if an object is unknown. In LogicalObj one of the objects may be absent.
    """
    found = [
        _SELECTED.fullmatch(step["argument"]) for step in steps if step["operation"] == "select"
    ]
    if task == "ChooseRel":
        found.append(_RELATED.fullmatch(steps[-1]["argument"]))
    objects = []
    for match in found:
        if match is None:
            return None
        key = match["id"]
        may_be_absent = key == ABSENT and task == "LogicalObj"
        if key not in known and not may_be_absent:
            return None
        objects.append((match["name"], key))
    if not any(key in known for _, key in objects):
        return None
    return sorted(objects, key=lambda each: each[1] == ABSENT)


def _find_options(task: str, question: Json) -> tuple[str, str] | None:
    """Return the answer and, in a Choose task, the other option.

    Returns:
        None if there are not two options of which one is right.
    """
    answer: str = question["answer"]
    if OPTIONS[0] not in COLUMNS[task]:
        return answer, ""
    argument = question["semantic"][-1]["argument"]
    options = argument.split("|")
    if task == "ChooseRel":
        match = _RELATED.fullmatch(argument)
        options = [_remove_fillers(match["one"]), _remove_fillers(match["other"])] if match else []
        answer = _remove_fillers(answer)
    if len(set(options)) != 2 or answer not in options:
        return None
    (other,) = {*options} - {answer}
    return answer, other


def _remove_fillers(relation: str) -> str:
    return " ".join(word for word in relation.split() if word not in _FILLERS)


def _describe_scene(question: Json, scene: Json, key: str) -> dict[str, str]:
    """Return the columns that only ChooseAttr has."""
    objects, (first, second) = scene["objects"], question["semantic"]
    names = [each["name"] for each in objects.values()]
    attributes: list[str] = []
    for each in objects.values():
        attributes += each["attributes"]
    return {
        "central object attributes": ", ".join(objects[key]["attributes"]),
        "central object question attribute": question["answer"],
        "all objects": _join_unique(names),
        "all objects attributes": _join_unique(attributes),
        "operation_1": str([first["operation"], first["argument"]]),
        "operation_2": str([second["operation"], second["argument"]]),
        "full answer": question["fullAnswer"],
    }


def _join_unique(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))
