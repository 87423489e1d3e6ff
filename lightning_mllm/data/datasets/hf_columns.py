"""Which column of a table is the picture, the label, the question: as told, or by its type."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

from lightning_mllm.errors import DataError, did_you_mean

IMAGE, CLASS_LABEL, TEXT, INTEGER, BYTES = "image", "class label", "text", "integer", "bytes"
JSON, OBJECT, LIST_OF = "JSON", "object", "list of "
_PICTURES = {IMAGE, TEXT, BYTES, LIST_OF + IMAGE, LIST_OF + TEXT, LIST_OF + BYTES}
# role -> the types that it can have
_TYPES: dict[str, set[str]] = {
    "image": _PICTURES,
    "label": {CLASS_LABEL, TEXT, INTEGER},
    "question": {TEXT},
    "answer": {TEXT, LIST_OF + TEXT},
    "conversation": {LIST_OF + OBJECT, JSON},
    "id": {TEXT, INTEGER, JSON},
    "kind": {TEXT, CLASS_LABEL},
    "system": {TEXT},
    "partner": {TEXT, INTEGER, JSON},
}
# role -> names that a column has where its type alone does not tell
_NAMES: dict[str, tuple[str, ...]] = {
    "image": ("image", "images", "img", "picture", "image_path", "jpg", "jpeg", "png", "webp"),
    "label": ("label", "labels", "class", "cls"),
    "question": ("question", "query"),
    "answer": ("answer", "answers", "multiple_choice_answer"),
    "conversation": ("conversations", "conversation", "messages"),
    "id": ("id", "question_id", "__key__"),
    "kind": ("kind",),
    "system": ("system",),
    "partner": ("partner",),
}
_TURNS = ({"from", "value"}, {"role", "content"}, {"user", "assistant"})  # keys of a turn
_TASKS = (("conversation",), ("question", "answer"), ("label",))
_DTYPES = {TEXT: ("string", "large_string"), BYTES: ("binary", "large_binary")}


@dataclass(frozen=True)
class HFColumns:
    """The columns of a table, by what they are read as.

    Each is found by name and type if it is not given; an empty name is no column. A name with a
    dot, such as `json.label`, is a field within a column.

    Attributes:
        image: Pictures: of the type Image, bytes, or paths; one or a list of them.
        label: The class: a ClassLabel, text, or integer. Samples with a label have no question.
        question: What is asked; its pictures come first, or where it says `<image>`.
        answer: The answer; of a list of answers the most frequent one, of equals the first.
        conversation: A list of turns with `from` and `value`, or `role` and `content`, or of pairs
            with `user` and `assistant`.
        id: The name of the row; by default split and number.
        kind: The kind of question, by which answers are scored.
        system: The system text.
        partner: The id of the row that is this one with one thing changed, as pairs for patching
            have it; empty where a row has none, or is named by another.
    """

    image: str | None = None
    label: str | None = None
    question: str | None = None
    answer: str | None = None
    conversation: str | None = None
    id: str | None = None
    kind: str | None = None
    system: str | None = None
    partner: str | None = None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield role and name of each column that there is."""
        for role, name in asdict(self).items():
            if name:
                yield role, name


class HFLayout(NamedTuple):
    """How the rows of a table are read.

    Attributes:
        columns: The columns that are read; None where there is none.
        classes: Role -> names of the classes, for columns of the type ClassLabel.
        unread: The columns that are not read.
    """

    columns: HFColumns
    classes: dict[str, tuple[str, ...]]
    unread: tuple[str, ...]


def find_layout(
    features: Mapping[str, Any], given: HFColumns, where: str, *, asks: bool
) -> HFLayout:
    """Return how the rows of a table are read.

    Args:
        features: Column -> its type, as plain data (`Features.to_dict`).
        given: The columns that are named.
        where: What messages call the table.
        asks: Whether all rows are asked one question, which needs no column.

    Raises:
        DataError: A column is not there or has a type that its role can't have, or it is not clear
            which columns are meant. The message lists the columns.
    """
    finder = _Finder(features, where)
    columns = {role: finder.check(role, name) for role, name in given if name}
    told = {role for role, name in asdict(given).items() if name is not None}
    if "image" not in told:
        columns["image"] = finder.find_image()
    columns |= finder.find_task(columns, told, asks=asks)
    extra = ("id",) if "label" in columns else ("id", "kind", "system", "partner")
    for role in extra:
        if role not in told and (name := finder.find_named(role)):
            columns[role] = name
    classes = {}
    for role, name in columns.items():
        feature = find_feature(features, name)
        if name_feature(feature) == CLASS_LABEL:
            classes[role] = tuple(feature["names"])
    tops = {name.partition(".")[0] for name in columns.values()} | set(columns.values())
    unread = tuple(name for name in features if name not in tops)
    return HFLayout(replace(HFColumns(), **columns), classes, unread)


class _Finder:
    """Finds columns, and says what there is where it finds none."""

    def __init__(self, features: Mapping[str, Any], where: str) -> None:
        self._features, self._where = features, where

    def check(self, role: str, name: str) -> str:
        """Return a column's name, which must be there and have a type that its role can have."""
        feature = find_feature(self._features, name)
        if feature is None:
            hint = did_you_mean(name, self._features).replace("\n", " ")
            raise self._error(f"there is no column {name!r}, which is to be the {role}.{hint}")
        found = name_feature(feature)
        if found not in _TYPES[role]:
            expected = ", ".join(sorted(_TYPES[role]))
            raise self._error(
                f"the column {name!r} is to be the {role}, but has the type {found}; it can be "
                f"{expected}."
            )
        return name

    def find_image(self) -> str:
        """Return the column of pictures."""
        typed = [name for name in self._features if self._type(name).endswith(IMAGE)]
        if len(typed) > 1:
            typed = [name for name in _NAMES["image"] if name in typed][:1] or typed
        if len(typed) == 1:
            return typed[0]
        named = self.find_named("image")
        if typed or not named:
            what = "more than one column of pictures" if typed else "no column of pictures"
            raise self._error(
                f'there is {what}. Name it (columns.image), or say that there is none: "".'
            )
        return named

    def find_task(
        self, columns: Mapping[str, str], told: set[str], *, asks: bool
    ) -> dict[str, str]:
        """Return the columns of a conversation, of question and answer, or of a label.

        Columns that are named say which of the three it is.
        """
        named = [role for role in chain.from_iterable(_TASKS) if columns.get(role)]
        tasks = [task for task in _TASKS if not named or set(task) & set(named)]
        found = []
        for task in tasks:
            roles = {role: columns.get(role) or self._find_default(role, told) for role in task}
            if "question" in task and asks:
                del roles["question"]
            if all(roles.values()):
                found.append({role: str(name) for role, name in roles.items()})
        if len(found) == 1:
            return found[0]
        if found:
            choices = "; or ".join(_list_roles(each) for each in found)
            raise self._error(f"its rows can be read in more than one way: {choices}. Name one.")
        if named:
            missing = " and ".join(each for each in tasks[0] if each not in named)
            raise self._error(
                f"there is a column for the {named[0]}, but none for the {missing}. Name it "
                f"(columns.{missing})"
                + (", or give one `question` for all rows." if missing == "question" else ".")
            )
        raise self._error(
            "it is not clear what is to be learnt: a label (one column of the type ClassLabel), a "
            "conversation, or a question with its answer. Name it: columns.label, "
            "columns.conversation, or columns.question and columns.answer."
        )

    def find_named(self, role: str) -> str | None:
        """Return the column with the first of a role's own names, if its type fits."""
        for name in _NAMES[role]:
            if name in self._features and self._type(name) in _TYPES[role]:
                return name
        return None

    def _find_default(self, role: str, told: set[str]) -> str | None:
        """Return the column that a role has if none is told."""
        if role in told:
            return None
        if role == "conversation":
            turns = [name for name in self._features if _holds_turns(self._features[name])]
            return turns[0] if len(turns) == 1 else self.find_named(role)
        if role == "label":
            typed = [name for name in self._features if self._type(name) == CLASS_LABEL]
            if len(typed) > 1:
                return next((name for name in _NAMES["label"] if name in typed), None)
            return typed[0] if typed else self.find_named(role)
        return self.find_named(role)

    def _type(self, name: str) -> str:
        return name_feature(self._features[name])

    def _error(self, problem: str) -> DataError:
        listed = ", ".join(f"{name!r} ({self._type(name)})" for name in self._features)
        return DataError(f"{self._where}: {problem} The columns are {listed}.", "columns")


def find_feature(features: Mapping[str, Any], name: str) -> Any:
    """Return the type of a column, or of a field within it; None if there is none."""
    if name in features:
        return features[name]
    top, _, rest = name.partition(".")
    inner: Any = features.get(top) if rest else None
    if not isinstance(inner, Mapping):
        return None
    if "_type" not in inner:
        return find_feature(inner, rest)
    listed = inner.get("feature")
    if not isinstance(listed, Mapping) or "_type" in listed:
        return None
    field = find_feature(listed, rest)
    return None if field is None else {"feature": field, "_type": "List"}


def split_column(name: str, columns: Container[str]) -> tuple[str, list[str]]:
    """Return the column that a name means, and the fields within it, from the outside in."""
    if name in columns:
        return name, []
    column, *fields = name.split(".")
    return column, fields


def pick_field(value: Any, fields: Sequence[str]) -> Any:
    """Return the field of a value, or of each object in a list."""
    for number, field in enumerate(fields):
        if isinstance(value, list):
            return [pick_field(each, fields[number:]) for each in value]
        value = None if value is None else value[field]
    return value


def name_feature(feature: Any) -> str:
    """Return the type of a column in one word or two."""
    kind = feature.get("_type")
    if not isinstance(kind, str):
        return OBJECT
    if kind in ("List", "LargeList", "Sequence"):
        return LIST_OF + name_feature(feature["feature"])
    if kind != "Value":
        return {"Image": IMAGE, "ClassLabel": CLASS_LABEL, "Json": JSON}.get(kind, kind)
    dtype = str(feature["dtype"])
    if "int" in dtype:
        return INTEGER
    return next((name for name, dtypes in _DTYPES.items() if dtype in dtypes), dtype)


def _holds_turns(feature: Any) -> bool:
    """Return whether a column is a list of turns, by the keys of its objects."""
    if name_feature(feature) != LIST_OF + OBJECT:
        return False
    return any(keys <= set(feature["feature"]) for keys in _TURNS)


def _list_roles(columns: Mapping[str, str]) -> str:
    return " and ".join(f"{role} {name!r}" for role, name in columns.items())


def list_columns(names: Iterable[tuple[str, str]]) -> str:
    """Return roles and names of columns, for a message."""
    return ", ".join(f"{role} from {name!r}" for role, name in names)
