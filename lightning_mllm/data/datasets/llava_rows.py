"""One row of a file in LLaVA's JSON format, or in a similar one; what is not read of it is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_mllm.data.datasets.rows import FileRow, ImageRoot
from lightning_mllm.data.datasets.sample_fields import read_sample_fields
from lightning_mllm.data.datasets.unread_llava_rows import UnreadLlavaRows
from lightning_mllm.data.text.turns import join_turn_around_images
from lightning_mllm.errors import DataError
from lightning_mllm.types import LazyImage, Sample, Turn

PLACEHOLDER = "<image>"
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_NAMES = (("user", "assistant"), ("human", "gpt"))
_OF_ROW = {"id", "kind", "partner", "image", "images", "system", "conversations", "messages"}
_OF_TURN = {"from", "value", "role", "content"}
_OF_PART = {"type", "text", "index", "image", "path", "url"}
# keys whose content would be lost
_REFUSED = {
    *("video", "videos", "audio", "audios", "speech", "documents", "chosen", "rejected"),
    *("rejected_response", "tools", "functions", "function_call", "tool_calls"),
    *("reasoning", "reasoning_content", "thinking"),
}
_WEIGHTS = {"weight", "loss", "train"}  # of a turn's loss; 1 and true change nothing


class _RawTurn(NamedTuple):
    """A turn as a row has it.

    Attributes:
        name: What the row calls the speaker.
        role: Who speaks: user, assistant or system.
        pieces: The text, cut where images stand.
        paths: The paths of these images, if the turn names them.
    """

    name: str
    role: str
    pieces: list[str]
    paths: list[object]


class LlavaRow:
    """Reads one row.

    Args:
        row: Where the row is, for messages.
        root: Folder of the images; a path must be resolved.
        unread: Counts what is not read.
        fields: Further keys that go along with the sample.
    """

    def __init__(
        self,
        row: FileRow,
        root: Path | ImageRoot,
        unread: UnreadLlavaRows,
        fields: Sequence[str] = (),
    ) -> None:
        self._row, self._root, self._unread, self._fields = row, root, unread, fields

    def make_sample(
        self, content: object, images: Sequence[Path | LazyImage] | None = None
    ) -> Sample:
        """Return the sample of a row's content; its id is empty if it has none.

        Args:
            content: The row.
            images: The row's images, if it does not name them itself; they stand before the first
                question if there is no placeholder.

        Raises:
            DataError: The row is malformed, or has content that can't be taken; the message names
                file, row and field.
        """
        if not isinstance(content, dict):
            raise self._error("", f"a {type(content).__name__} where an object was expected")
        self._check_keys(content, _OF_ROW | {*self._fields}, "")
        name = content.get("id")
        if not isinstance(name, str | int | None):
            raise self._error("id", f"a {type(name).__name__} where text or a number was expected")
        kind = content.get("kind")
        if kind is not None and (not isinstance(kind, str) or not kind.strip()):
            problem = f"{kind!r} is not text. Give the kind of question, or leave it out"
            raise self._error("kind", problem)
        partner = content.get("partner")
        if not isinstance(partner, str | int | None) or partner == "":
            problem = f"{partner!r} is no id. Give that of the row's partner, or leave it out"
            raise self._error("partner", problem)
        field = self._find_key(content, "conversations", "messages")
        system, turns = self._read_conversation(content.get(field), field, content.get("system"))
        if images is None:
            images = self._find_images(content, turns, field)
        elif not any(len(turn.pieces) > 1 for turn in turns):
            turns[0] = turns[0]._replace(pieces=[*[""] * len(images), turns[0].pieces[0]])
        return Sample(
            id="" if name is None else str(name),
            images=images,
            conversation=self._build_turns(turns, len(images), field),
            system=system,
            kind=kind,
            fields=read_sample_fields(content, self._fields, self._row),
            partner=None if partner is None else str(partner),
        )

    def _check_keys(self, content: Mapping[str, Any], known: set[str], field: str) -> None:
        """Refuse keys whose content would be lost, and count the others that are not read."""
        for key in content.keys() - known:
            path = f"{field}.{key}" if field else key
            if _says_nothing(key, content[key]):
                continue
            if field and key in ("image", "images"):
                problem = "is not read here. Name images in the row's 'image', or in parts"
                raise self._error(path, problem)
            if key.lower() in _REFUSED or (field and key in _WEIGHTS):
                problem = "has content that can't be taken. Remove the key, or leave the row out"
                raise self._error(path, problem)
            self._unread.keys[path.partition("[")[0] + (f"[].{key}" if field else "")] += 1

    def _find_key(self, content: Mapping[str, Any], name: str, other: str, field: str = "") -> str:
        """Return which of two keys with the same meaning a row or turn has."""
        if content.get(other) is None:
            return name
        if content.get(name) is not None:
            problem = f"is given beside {name!r}, which means the same. Give one of them"
            raise self._error(f"{field}{other}", problem)
        return other

    def _find_images(
        self, content: Mapping[str, Any], turns: list[_RawTurn], field: str
    ) -> list[Path]:
        """Return the image files that a row or its turns name."""
        paths: list[object] = []
        for turn in turns:
            paths += turn.paths
        given = self._find_key(content, "image", "images")
        value = content.get(given)
        if value is not None:
            if paths:
                problem = f"images are named here and in {field!r}. Name them in one place"
                raise self._error(given, problem)
            paths = value if isinstance(value, list) else [value]
        return [self._find_image(path, given) for path in paths]

    def _find_image(self, path: object, field: str) -> Path:
        if not isinstance(path, str) or not path:
            problem = f"{repr(path)[:60]} is not a path. Give one, a list of paths, or leave it out"
            raise self._error(field, problem)
        way_out = "Correct the path, or `image_root`"
        return self._row.find_image(self._root, path, kind=field, field=field, way_out=way_out)

    def _build_turns(self, turns: list[_RawTurn], images: int, field: str) -> list[Turn]:
        """Return the turns of a sample, which must have one placeholder per image."""
        built = []
        for turn in turns:
            if turn.role == "user":
                built.append(join_turn_around_images(turn.pieces))
            else:
                built.append(Turn("assistant", turn.pieces[0].strip()))
        placeholders = sum(turn.images for turn in built)
        if placeholders != images:
            relation = "fewer" if placeholders < images else "more"
            raise self._error(
                field,
                f"{relation} {PLACEHOLDER} placeholders ({placeholders}) than images ({images}). "
                "Write one per image",
            )
        return built

    def _read_conversation(
        self, value: object, field: str, system: object
    ) -> tuple[str | None, list[_RawTurn]]:
        """Return the system text and the turns, which alternate and begin with the user's."""
        if not isinstance(system, str | None):
            raise self._error("system", f"a {type(system).__name__} where text was expected")
        turns: list[_RawTurn] = []
        images = 0
        for k, content in enumerate(value if isinstance(value, list) else ()):
            turn = self._read_turn(content, f"{field}[{k}]", images)
            images += len(turn.pieces) - 1
            turns.append(turn)
        first = 0
        if turns and turns[0].role == "system":
            if system:
                problem = f"is given beside a system turn in {field!r}. Give one of them"
                raise self._error("system", problem)
            system, first = "".join(turns[0].pieces), 1
        rest = turns[first:]
        if len(rest) > 1 and len(rest) % 2 and rest[0].role == "assistant":
            self._unread.first_answers += 1
            first, rest = first + 1, rest[1:]
        self._check_alternation(rest, first, field)
        if not rest or len(rest) % 2:
            found = f"{len(rest)} turns" if isinstance(value, list) else repr(value)[:40]
            problem = f"{found}; pairs of a human's and a gpt's turn were expected"
            raise self._error(field, problem)
        return system.strip() if system else None, rest

    def _check_alternation(self, turns: list[_RawTurn], first: int, field: str) -> None:
        """Refuse turns that do not alternate; `first` is the place of the first in the row."""
        for k, turn in enumerate(turns):
            if turn.role != ("user", "assistant")[k % 2]:
                names = _NAMES[turn.name in ("human", "gpt")]
                raise self._error(
                    f"{field}[{first + k}]",
                    f"is from {turn.name!r}, but {names[k % 2]!r} was expected: turns alternate "
                    f"and begin with {names[0]}",
                )

    def _read_turn(self, content: object, field: str, images: int) -> _RawTurn:
        """Return a turn as the row has it; `images` of the row stand before it."""
        name = None
        if isinstance(content, dict):
            name = content.get(self._find_key(content, "from", "role", f"{field}."))
        if not isinstance(content, dict) or not name:
            problem = "no object with 'from' (human or gpt) and 'value', or 'role' and 'content'"
            raise self._error(field, problem)
        self._check_keys(content, _OF_TURN, field)
        role = _ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            roles = ", ".join(map(repr, _ROLES))
            raise self._error(field, f"is from {name!r}; it can be {roles}")
        key = self._find_key(content, "value", "content", f"{field}.")
        value = content.get(key)
        pieces = [""]
        paths: list[object] = []
        if isinstance(value, list) and value:
            pieces, paths = self._read_parts(value, f"{field}.{key}", images)
        elif isinstance(value, str):
            pieces = value.split(PLACEHOLDER)
        if len(pieces) == 1 and not pieces[0].strip() and role != "system":
            raise self._error(field, f"{key!r} is missing, empty or not text")
        if len(pieces) > 1 and role != "user":
            where = "an answer" if role == "assistant" else "a system text"
            raise self._error(
                field, f"{PLACEHOLDER} in {where}. Only a human's text can have images"
            )
        return _RawTurn(name, role, pieces, paths)

    def _read_parts(
        self, parts: list[Any], field: str, images: int
    ) -> tuple[list[str], list[object]]:
        """Return the texts around images, and the images' paths, of content in parts."""
        pieces = [""]
        paths: list[object] = []
        for k, part in enumerate(parts):
            where = f"{field}[{k}]"
            kind = part.get("type") if isinstance(part, dict) else None
            text = part.get("text") if kind == "text" else None
            if isinstance(text, str) and PLACEHOLDER not in text:
                is_glued = pieces[-1][-1:].strip() and text[:1].strip()
                pieces[-1] += (" " if is_glued else "") + text
            elif kind == "image" and part.get("index") in (None, images + len(pieces) - 1):
                named = [part[key] for key in ("image", "path", "url") if part.get(key) is not None]
                paths += named[:1]
                pieces.append("")
            else:
                problem = f"{str(part)[:60]!r} is neither a text nor the next image with its 'type'"
                raise self._error(where, problem)
            self._check_keys(part, _OF_PART, where)
        return pieces, paths

    def _error(self, field: str, problem: str) -> DataError:
        return self._row.error(problem, field.partition("[")[0] or "row", field)


def _says_nothing(key: str, value: object) -> bool:
    """Return whether the value of a key that is not read changes nothing."""
    if value in (None, "", [], {}):
        return True
    return value == 1 if key in _WEIGHTS else value is False
