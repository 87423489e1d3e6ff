"""The six tasks of the information-flow study, taken from GQA's own questions and scene graphs.

GQA (Hudson and Manning, CVPR 2019) gives each question types, the steps of its reasoning with the ids of the objects
that they are about, and a scene graph with these objects' boxes. The rules are those that the released files follow;
which of the fitting questions were released is a choice of their authors that no rule tells.
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

from lightning_mllm.data.datasets.gqa.rows import ABSENT, COLUMNS, OPTIONS, boxes, objects_of, write_rows
from lightning_mllm.errors import DataError

Json = Mapping[str, Any]
Rows = list[dict[str, str]]

_SELECTED = re.compile(r"(?P<name>.*) \((?P<id>[^()]*)\)\s*")  # e.g. "jar (496168)"
_RELATED = re.compile(r"(?P<name>.*),(?P<one>[^,|]+)\|(?P<other>[^,|]+),[so] \((?P<id>[^()]*)\)\s*")
_FILLERS = {"to", "the", "of", "in"}  # "to the left of" is the option "left"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Rule:
    """What makes a question one of a task.

    Attributes:
        semantic: GQA's semantic type.
        structural: GQA's structural type.
        detailed: GQA's detailed types, any of them.
        steps: Pattern of the operations, "/" behind each.
        argument: Of the last step; anything if empty.
    """

    semantic: str
    structural: str
    detailed: tuple[str, ...]
    steps: str
    argument: str = ""

    def fits(self, question: Json) -> bool:
        types, steps = question["types"], question["semantic"]
        return (
            (types["semantic"], types["structural"]) == (self.semantic, self.structural)
            and types["detailed"] in self.detailed
            and re.fullmatch(self.steps, "".join(f"{step['operation']}/" for step in steps)) is not None
            and self.argument in ("", steps[-1]["argument"])
        )


RULES: Mapping[str, _Rule] = {
    "ChooseAttr": _Rule(
        "attr", "choose", ("chooseAttr", "materialChoose", "typeChoose", "activityChoose"), r"select/choose[^/]*/"
    ),
    "ChooseCat": _Rule(
        "cat",
        "choose",
        ("objThisChoose", "categoryThatChoose", "categoryThisChoose"),
        r"select/(filter[^/]*/)*choose[^/]*/",
    ),
    "ChooseRel": _Rule("rel", "choose", ("relChooser",), r"select/choose rel/"),
    "CompareAttr": _Rule("attr", "compare", ("twoCommon",), r"select/select/common/"),
    "LogicalObj": _Rule("obj", "logical", ("existThatOr", "existThatOrC"), r"(select/filter[^/]*/exist/){2}or/"),
    "QueryAttr": _Rule("attr", "query", ("positionQuery",), r"select/query/", "hposition"),
}


def extract_tasks(questions: Json, scenes: Json) -> dict[str, Rows]:
    """Return task -> rows with the columns of its released file, in the order of the questions.

    Two columns stay empty or differ in order from the released files: captions are Visual Genome's, which is another
    data set, and objects and attributes of a scene are listed in the scene graph's order.

    Questions whose steps name an object that the scene graph does not have, or whose options are not two of which one
    is the answer, are left out, and their number is logged.

    Args:
        questions: Question id -> question, as in GQA's `val_balanced_questions.json`.
        scenes: Image id -> scene graph, as in `val_sceneGraphs.json`.

    Raises:
        DataError: A question or scene lacks what GQA's have.
    """
    tasks: dict[str, Rows] = {task: [] for task in RULES}
    left_out: Counter[str] = Counter()
    for name, question in questions.items():
        try:
            task = next((task for task, rule in RULES.items() if rule.fits(question)), None)
            if task is None:
                continue
            row = _row(task, name, question, scenes.get(question["imageId"]))
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"The question {name!r}, or the scene graph of its image, is not in GQA's format: {error!r}. Give "
                "GQA's questions with their steps (`semantic`) and types, and its scene graphs."
            ) from error
        if row is None:
            left_out[task] += 1
        else:
            tasks[task].append({column: row[column] for column in COLUMNS[task]})
    for task, count in left_out.items():
        logger.warning("%s: %d questions have objects or options that can't be told, and are left out", task, count)
    return tasks


def write_tasks(questions: Iterable[Path], scenes: Path, folder: Path, name: str = "GQA") -> list[Path]:
    """Extract tasks from GQA's files into `<name>_<Task>.csv`, one per task that has questions.

    Args:
        questions: GQA's question files.
        scenes: Its file of scene graphs.
        folder: Where the files go; made if need be.
        name: What stands before the task in the files' names.

    Raises:
        DataError: A file is missing or not in GQA's format, or no question fits.
    """
    asked = {key: question for file in questions for key, question in _load(file).items()}
    tasks = extract_tasks(asked, _load(scenes))
    if not any(tasks.values()):
        raise DataError(
            f"None of {len(asked)} questions belongs to a task. Give GQA's question files, and their scenes."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return [write_rows(folder / f"{name}_{task}.csv", task, rows) for task, rows in tasks.items() if rows]


def _load(file: Path) -> Json:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} can't be read as JSON: {error}. Correct the path, or fetch the file again.") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{file} holds a {type(content).__name__}, but GQA's files hold an object with ids as its keys."
        )
    return content


def _row(task: str, name: str, question: Json, scene: Json | None) -> dict[str, str] | None:
    """Return all that any task's file says of a question; None if its objects or options can't be told."""
    steps, types = question["semantic"], question["types"]
    objects = _objects(task, steps, scene["objects"]) if scene else None
    options = _options(task, question)
    if scene is None or objects is None or options is None:
        return None
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
        "operations": str([{key: step[key] for key in ("operation", "dependencies", "argument")} for step in steps]),
        "captions": "",
        "image_w": str(scene["width"]),
        "image_h": str(scene["height"]),
    }
    for column, (called, key) in zip(objects_of(task), objects, strict=True):
        box = [str(scene["objects"][key][field]) for field in "whxy"] if key != ABSENT else [ABSENT] * 4
        row |= {f"{column} name": called, f"{column} id": key, **dict(zip(boxes([column]), box, strict=True))}
    if task == "ChooseAttr":
        row |= _details(question, scene, objects[0][1])
    return row


def _objects(task: str, steps: Sequence[Json], known: Json) -> list[tuple[str, str]] | None:
    """Return names and ids of the objects, one that is in the picture first; None if any other is unknown."""
    found = [_SELECTED.fullmatch(step["argument"]) for step in steps if step["operation"] == "select"]
    if task == "ChooseRel":
        found.append(_RELATED.fullmatch(steps[-1]["argument"]))
    objects = [(match["name"], match["id"]) for match in found if match]
    there = [key in known for _, key in objects]
    absent = [key == ABSENT and task == "LogicalObj" for _, key in objects]
    if len(objects) < len(found) or not any(there) or not all(map(max, there, absent)):
        return None
    return sorted(objects, key=lambda each: each[1] == ABSENT)


def _options(task: str, question: Json) -> tuple[str, str] | None:
    """Return the answer and, in a Choose task, the other option; None if there are no two of which one is right."""
    answer: str = question["answer"]
    if OPTIONS[0] not in COLUMNS[task]:
        return answer, ""
    argument = question["semantic"][-1]["argument"]
    options = argument.split("|")
    if task == "ChooseRel":
        match = _RELATED.fullmatch(argument)
        options = [_short(match["one"]), _short(match["other"])] if match else []
        answer = _short(answer)
    if len(set(options)) != 2 or answer not in options:
        return None
    (other,) = {*options} - {answer}
    return answer, other


def _short(relation: str) -> str:
    return " ".join(word for word in relation.split() if word not in _FILLERS)


def _details(question: Json, scene: Json, key: str) -> dict[str, str]:
    """Return the columns that only ChooseAttr has."""
    things, (first, second) = scene["objects"], question["semantic"]
    return {
        "central object attributes": ", ".join(things[key]["attributes"]),
        "central object question attribute": question["answer"],
        "all objects": _listed(thing["name"] for thing in things.values()),
        "all objects attributes": _listed(word for thing in things.values() for word in thing["attributes"]),
        "operation_1": str([first["operation"], first["argument"]]),
        "operation_2": str([second["operation"], second["argument"]]),
        "full answer": question["fullAnswer"],
    }


def _listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))
