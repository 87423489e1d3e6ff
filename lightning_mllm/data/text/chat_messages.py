"""What a conversation gives to a chat template: roles and contents, with stand-ins in the place of its texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_mllm.data.text.prompts import Dialogue
from lightning_mllm.data.text.turns import pieces
from lightning_mllm.types import Segment, Turn

SYSTEM = 0  # number of the system text; the others count from 1
_STAND_IN = re.compile("\ue000([0-9]+)\ue001")  # private-use characters: no template writes them

Message = dict[str, Any]
Piece = str | int  # literal text, or the number of a stand-in


@dataclass(frozen=True)
class Text:
    """A text of a conversation, without the blanks around it."""

    segment: Segment
    words: str


@dataclass(frozen=True)
class ChatMessages:
    """All that the template's output depends on, texts aside: conversations of one shape have one script.

    Attributes:
        system: Whether there is a system text.
        turns: Per turn its role and its parts; None is an image.
        cue: What stands behind the template's prompt.
    """

    system: bool
    turns: tuple[tuple[str, tuple[str | None, ...]], ...]
    cue: str

    @property
    def numbers(self) -> list[int]:
        """The numbers of all stand-ins."""
        parts = "".join(part for _, parts in self.turns for part in parts if part)
        return [SYSTEM] * self.system + [int(number) for number in _STAND_IN.findall(parts)]

    def messages(self, texts: Sequence[Text] | None = None) -> list[Message]:
        """Return what the template takes, with `texts` filled in, if given."""

        def content(parts: Sequence[str | None]) -> list[dict[str, str]]:
            written = (None if part is None else part if texts is None else fill(part, texts) for part in parts)
            return [{"type": "image"} if part is None else {"type": "text", "text": part} for part in written]

        turns = (("system", (_stand_in(SYSTEM),)), *self.turns) if self.system else self.turns
        return [{"role": role, "content": content(parts)} for role, parts in turns]


def build_messages(dialogue: Dialogue) -> tuple[ChatMessages, list[Text]]:
    """Return the script of a conversation and the texts that its stand-ins stand for, by number."""
    texts = [Text(Segment.SYSTEM, dialogue.system.strip())]
    turns = []
    for turn in dialogue.turns:
        if turn.role == "assistant":
            parts: list[str | None] = [_add(texts, Segment.ANSWER, turn.text)]
        else:
            parts = _user_parts(turn, dialogue.joint, texts)
        turns.append((turn.role, tuple(parts)))
    return ChatMessages(bool(dialogue.system), tuple(turns), dialogue.cue), texts


def fill(text: str, texts: Sequence[Text]) -> str:
    """Put texts in the place of their stand-ins."""
    return _STAND_IN.sub(lambda found: texts[int(found[1])].words, text)


def split(text: str) -> tuple[Piece, ...]:
    """Cut a written text at its stand-ins."""
    literal_and_numbers = _STAND_IN.split(text)  # literal, number, literal, number, ..., literal
    return tuple(int(part) if k % 2 else part for k, part in enumerate(literal_and_numbers) if part)


def _user_parts(turn: Turn, joint: str, texts: list[Text]) -> list[str | None]:
    parts: list[str | None] = []
    for k, piece in enumerate(pieces(turn)):
        if k:
            parts.append(None)
        if words := piece.strip():
            before, behind = piece.split(words)
            parts.append(f"{before}{_add(texts, Segment.QUESTION, words)}{behind}")
        elif piece:
            parts.append(piece)
    if turn.instruction:
        instruction = (joint if turn.text else "") + _add(texts, Segment.INSTRUCTION, turn.instruction)
        if parts and parts[-1] is not None:
            parts[-1] += instruction
        else:
            parts.append(instruction)
    return parts


def _add(texts: list[Text], segment: Segment, words: str) -> str:
    texts.append(Text(segment, words))
    return _stand_in(len(texts) - 1)


def _stand_in(number: int) -> str:
    return f"\ue000{number}\ue001"
