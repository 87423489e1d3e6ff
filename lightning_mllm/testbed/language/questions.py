"""The six question types of the information-flow study and their wordings.

They are the types of GQA (Hudson and Manning, 2019) that "Cross-modal Information Flow in
Multimodal Large Language Models" (CVPR 2025) uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from lightning_mllm.testbed.language.references import Reference


class QuestionType(StrEnum):
    """Type of a question: the tasks of the information-flow study."""

    CHOOSE_ATTR = "ChooseAttr"
    CHOOSE_CAT = "ChooseCat"
    CHOOSE_REL = "ChooseRel"
    COMPARE_ATTR = "CompareAttr"
    LOGICAL_OBJ = "LogicalObj"
    QUERY_ATTR = "QueryAttr"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a scene.

    Attributes:
        type: Type of the question.
        wording: Index of the wording of its type, from 0.
        detailed: GQA's detailed name of the type.
        text: Text of the question.
        answer: The one right answer, in lower case.
        other_option: The wrong option that the question names; empty if it names none.
        references: The objects that the question is about, in the order of GQA's columns: the
            anchor of a relation comes first.
        operations: GQA's steps, as (operation, indices of the steps it needs, argument).
    """

    type: QuestionType
    wording: int
    detailed: str
    text: str
    answer: str
    other_option: str = ""
    references: tuple[Reference, ...]
    operations: tuple[tuple[str, tuple[int, ...], str], ...]

    @property
    def kind(self) -> str:
        """Type and wording, e.g. "ChooseAttr/0"; accuracy is reported per kind."""
        return f"{self.type}/{self.wording}"


CHOOSE_ATTR = (
    "Is the {thing} {options}?",
    "What is the {attribute} of the {thing}, {options}?",
    "Which {attribute} does the {thing} have, {options}?",
)
CHOOSE_CAT = (
    "Is the {thing} {options}?",
    "What is the {thing}, {options}?",
    "What kind of shape is the {thing}, {options}?",
)
CHOOSE_REL = (
    "Is the {thing} {options} the {anchor}?",
    "Where is the {thing}, {options} the {anchor}?",
)
COMPARE_ATTR = (
    "What do the {thing} and the {other} have in common?",
    "What do both the {thing} and the {other} have in common?",
    "Which property is common to the {thing} and the {other}?",
)
LOGICAL_OBJ = (
    "Is there {thing} or {other}?",
    "Are there any {thing} or {other} in the picture?",
    "Is there both {thing} and {other}?",
)
QUERY_ATTR = (
    "On which side of the picture is the {thing}?",
    "What {attribute} is the {thing}?",
    "What is the {attribute} of the {thing}?",
)
WORDINGS: dict[QuestionType, tuple[str, ...]] = {
    QuestionType.CHOOSE_ATTR: CHOOSE_ATTR,
    QuestionType.CHOOSE_CAT: CHOOSE_CAT,
    QuestionType.CHOOSE_REL: CHOOSE_REL,
    QuestionType.COMPARE_ATTR: COMPARE_ATTR,
    QuestionType.LOGICAL_OBJ: LOGICAL_OBJ,
    QuestionType.QUERY_ATTR: QUERY_ATTR,
}
