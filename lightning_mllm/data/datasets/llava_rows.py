"""One row of a file in LLaVA's JSON format, or in a format near it; what is not read of it is said."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_mllm.data.text.turns import question
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample, Turn

PLACEHOLDER = "<image>"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_OF_ROW = {"id", "kind", "image", "images", "system", "conversations", "messages"}
_OF_TURN = {"from", "value", "role", "content"}
_OF_PART = {"type", "text", "index", "image", "path", "url"}
_REFUSED = {  # they say something that would be lost
    *("video", "videos", "audio", "audios", "speech", "documents", "tools", "functions", "function_call", "tool_calls"),
    *("reasoning", "reasoning_content", "thinking", "chosen", "rejected", "rejected_response"),
}
_WEIGHTS = {"weight", "loss", "train"}  # of a turn's loss; 1 and true change nothing

logger = logging.getLogger(__name__)


class Unread:
    """Counts what is left unread in the rows of a file."""

    def __init__(self) -> None:
        self.keys: Counter[str] = Counter()
        self.first_answers = 0

    def warn(self, file: Path) -> None:
        """Say what it is; nothing where all is read."""
        if self.keys:
            found = ", ".join(f"{key} ({count} times)" for key, count in self.keys.most_common())
            logger.warning("%s has keys that are not read: %s", file, found)
        if self.first_answers:
            logger.warning(
                "%d conversations of %s begin with an answer to nothing; it is left out, as in LLaVA's own training",
                self.first_answers,
                file,
            )


class _Said(NamedTuple):
    """A turn as a row has it: an image stands between each two of `pieces`, its path in `paths` if it is given."""

    name: str
    role: str
    pieces: list[str]
    paths: list[object]


class LlavaRow:
    """Reads one row, and knows where it is for the sake of messages.

    Args:
        file: The file that the row is from.
        number: Which row it is, from 1.
        root: Folder of the images, resolved.
        unread: Counts what is not read.
    """

    def __init__(self, file: Path, number: int, root: Path, unread: Unread) -> None:
        self._file, self._number, self._root, self._unread = file, number, root, unread

    def sample(self, row: object) -> Sample:
        """Return what a row says; its id is empty if it has none.

        Raises:
            DataError: The row is malformed, or holds what can't be taken; the message names file, row and field.
        """
        if not isinstance(row, dict):
            raise self._error("", f"a {type(row).__name__} where an object was expected")
        self._check_keys(row, _OF_ROW, "")
        name = row.get("id")
        if not isinstance(name, str | int | None):
            raise self._error("id", f"a {type(name).__name__} where text or a number was expected")
        kind = row.get("kind")
        if kind is not None and (not isinstance(kind, str) or not kind.strip()):
            raise self._error("kind", f"{kind!r} is no text. Give the kind of question, or leave it out")
        field = self._one_of(row, "conversations", "messages")
        system, said = self._conversation(row.get(field), field, row.get("system"))
        paths = [path for turn in said for path in turn.paths]
        given = self._one_of(row, "image", "images")
        if paths and row.get(given) is not None:
            raise self._error(given, f"images are named here and in {field!r}. Name them in one place")
        if not paths and row.get(given) is not None:
            paths = row[given] if isinstance(row[given], list) else [row[given]]
        images = [self._image(path, given) for path in paths]
        turns = [question(turn.pieces) if turn.role == "user" else _answer(turn) for turn in said]
        self._check_placeholders(sum(turn.images for turn in turns), len(images), field)
        name = "" if name is None else str(name)
        return Sample(id=name, images=images, conversation=turns, system=system, kind=kind)

    def _check_keys(self, row: Mapping[str, Any], known: set[str], field: str) -> None:
        """Refuse keys that say what would be lost, and count the others that are not read."""
        for key in row.keys() - known:
            path, value = f"{field}.{key}" if field else key, row[key]
            if value in (None, "", [], {}) or (value == 1 if key in _WEIGHTS else value is False):
                continue  # it says nothing
            if field and key in ("image", "images"):
                raise self._error(path, "is not read here. Name images in the row's 'image', or in parts")
            if key.lower() in _REFUSED or (field and key in _WEIGHTS):
                raise self._error(path, "holds what can't be taken. Remove the key, or leave the row out")
            self._unread.keys[path.partition("[")[0] + (f"[].{key}" if field else "")] += 1

    def _one_of(self, row: Mapping[str, Any], name: str, other: str, field: str = "") -> str:
        """Return which of two keys of one meaning a row has, or a turn, the field of which is given."""
        if row.get(other) is None:
            return name
        if row.get(name) is not None:
            raise self._error(f"{field}{other}", f"is given beside {name!r}, which means the same. Give one of them")
        return other

    def _image(self, value: object, field: str) -> Path:
        if not isinstance(value, str) or not value:
            shown = repr(value)[:60]
            raise self._error(field, f"{shown} is not a path. Give a path, a list of paths, or leave it out")
        path = (self._root / value).resolve()
        if not path.is_relative_to(self._root):
            raise self._error(field, f"{value!r} leads out of the image root {self._root}. Give a path inside")
        if not path.is_file():
            raise self._error(field, f"{path} does not exist. Correct the path, or `image_root`")
        return path

    def _conversation(self, value: object, field: str, system: object) -> tuple[str | None, list[_Said]]:
        """Return the system text and the turns, which alternate and begin with the user's."""
        if not isinstance(system, str | None):
            raise self._error("system", f"a {type(system).__name__} where text was expected")
        said: list[_Said] = []
        for k, turn in enumerate(value if isinstance(value, list) else ()):
            said.append(self._said(turn, f"{field}[{k}]", sum(len(each.pieces) - 1 for each in said)))
        first = 0
        if said and said[0].role == "system":
            if system:
                raise self._error("system", f"is given beside a system turn in {field!r}. Give one of them")
            system, first = "".join(said[0].pieces), 1
        if len(said) - first > 1 and said[first].role == "assistant" and (len(said) - first) % 2:
            self._unread.first_answers += 1
            first += 1
        for k, turn in enumerate(said[first:]):
            expected = ("user", "assistant")[k % 2]
            if turn.role != expected:
                names = ("human", "gpt") if turn.name in ("human", "gpt") else ("user", "assistant")
                raise self._error(
                    f"{field}[{first + k}]",
                    f"is from {turn.name!r}, but {names[k % 2]!r} was expected: turns alternate and begin with "
                    f"{names[0]}",
                )
        if len(said) == first or (len(said) - first) % 2:
            found = f"{len(said) - first} turns" if isinstance(value, list) else repr(value)[:40]
            raise self._error(field, f"{found}; pairs of a human's and a gpt's turn were expected")
        return system.strip() if system else None, said[first:]

    def _said(self, turn: object, field: str, images: int) -> _Said:
        """Return what a turn says; `images` of the row stand before it."""
        if not isinstance(turn, dict) or not (name := turn.get(self._one_of(turn, "from", "role", f"{field}."))):
            raise self._error(field, "no object with 'from' (human or gpt) and 'value', or 'role' and 'content'")
        self._check_keys(turn, _OF_TURN, field)
        role = _ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise self._error(field, f"is from {name!r}; it can be {', '.join(map(repr, _ROLES))}")
        key = self._one_of(turn, "value", "content", f"{field}.")
        value = turn.get(key)
        if isinstance(value, list) and value:
            pieces, paths = self._parts(value, f"{field}.{key}", images)
        elif isinstance(value, str):
            pieces, paths = value.split(PLACEHOLDER), []
        else:
            pieces, paths = [""], []
        if len(pieces) == 1 and not pieces[0].strip() and role != "system":
            raise self._error(field, f"{key!r} is missing, empty or no text")
        if len(pieces) > 1 and role != "user":
            where = "an answer" if role == "assistant" else "a system text"
            raise self._error(field, f"{PLACEHOLDER} in {where}. Only a human's text can have images")
        return _Said(name, role, pieces, paths)

    def _parts(self, parts: list[Any], field: str, images: int) -> tuple[list[str], list[object]]:
        """Return the texts around images, and the images' paths, of a content that is a list of parts."""
        pieces, paths = [""], []
        for k, part in enumerate(parts):
            where = f"{field}[{k}]"
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text" and isinstance(part.get("text"), str) and PLACEHOLDER not in part["text"]:
                joint = " " if pieces[-1][-1:].strip() and part["text"][:1].strip() else ""
                pieces[-1] += joint + part["text"]
            elif kind == "image" and part.get("index") in (None, images + len(pieces) - 1):
                named = [part[key] for key in ("image", "path", "url") if part.get(key) is not None]
                paths += named[:1]
                pieces.append("")
            else:
                raise self._error(where, f"{str(part)[:60]!r} is neither a text nor the next image, with its 'type'")
            self._check_keys(part, _OF_PART, where)
        return pieces, paths

    def _check_placeholders(self, placeholders: int, images: int, field: str) -> None:
        if placeholders != images:
            relation = "fewer" if placeholders < images else "more"
            raise self._error(
                field,
                f"{relation} {PLACEHOLDER} placeholders ({placeholders}) than images ({images}). Write one per image",
            )

    def _error(self, field: str, problem: str) -> DataError:
        where = f", field {field!r}" if field else ""
        return DataError(f"{self._file}, row {self._number}{where}: {problem}.", field.partition("[")[0] or "row")


def _answer(turn: _Said) -> Turn:
    return Turn("assistant", turn.pieces[0].strip())
