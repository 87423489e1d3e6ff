"""What a chat template is given: roles and contents, with a numbered slot in place of each text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_mllm.data.text.prompts import Dialogue
from lightning_mllm.data.text.turns import cut_turn_at_images
from lightning_mllm.types import Segment, Turn

SYSTEM = 0  # slot of the system text; the other slots count from 1
_SLOT = re.compile("\ue000([0-9]+)\ue001")  # private-use characters, which no template writes

Message = dict[str, Any]
Piece = str | int  # literal text, or the number of a slot
Parts = tuple[str | None, ...]  # texts with slots in them; None is an image


class MessageText(NamedTuple):
    """The text that belongs in a slot, without the blanks around it."""

    segment: Segment
    words: str


@dataclass(frozen=True)
class ChatMessages:
    """All that decides what the template writes around the texts.

    Conversations of the same shape have equal messages.

    Attributes:
        system: Whether there is a system text.
        turns: Role and parts of each turn.
        cue: What follows the template's prompt, right before an answer.
    """

    system: bool
    turns: tuple[tuple[str, Parts], ...]
    cue: str

    @property
    def slots(self) -> list[int]:
        """The numbers of all slots."""
        numbers = [SYSTEM] if self.system else []
        for _, parts in self.turns:
            for part in parts:
                numbers += [int(number) for number in _SLOT.findall(part or "")]
        return numbers

    def to_list(self, texts: Sequence[MessageText] | None = None) -> list[Message]:
        """Return the messages as the template takes them, with `texts` in their slots if given."""
        turns = self.turns
        if self.system:
            turns = (("system", (_write_slot(SYSTEM),)), *turns)
        return [{"role": role, "content": _write_content(parts, texts)} for role, parts in turns]


def build_messages(dialogue: Dialogue) -> tuple[ChatMessages, list[MessageText]]:
    """Return the messages of a conversation, and the texts of their slots by number."""
    texts = [MessageText(Segment.SYSTEM, dialogue.system.strip())]
    turns: list[tuple[str, Parts]] = []
    for turn in dialogue.turns:
        if turn.role == "assistant":
            turns.append((turn.role, (_add_slot(texts, Segment.ANSWER, turn.text),)))
        else:
            turns.append((turn.role, _build_user_parts(turn, dialogue.joint, texts)))
    return ChatMessages(bool(dialogue.system), tuple(turns), dialogue.cue), texts


def fill_message_slots(text: str, texts: Sequence[MessageText]) -> str:
    """Replace each slot by its text."""
    return _SLOT.sub(lambda found: texts[int(found[1])].words, text)


def split_message_at_slots(text: str) -> tuple[Piece, ...]:
    """Return the literal pieces of a text and the numbers of its slots, in order."""
    pieces: list[Piece] = []
    for k, part in enumerate(_SLOT.split(text)):  # literal, number, literal, ..., number, literal
        if part:
            pieces.append(int(part) if k % 2 else part)
    return tuple(pieces)


def _write_content(parts: Parts, texts: Sequence[MessageText] | None) -> list[dict[str, str]]:
    """Return the content of one message, with `texts` in their slots if given."""
    content = []
    for part in parts:
        if part is None:
            content.append({"type": "image"})
        else:
            text = part if texts is None else fill_message_slots(part, texts)
            content.append({"type": "text", "text": text})
    return content


def _build_user_parts(turn: Turn, joint: str, texts: list[MessageText]) -> Parts:
    """Return the parts of a user's turn, and add its question and instruction to `texts`."""
    parts: list[str | None] = []
    for k, piece in enumerate(cut_turn_at_images(turn)):
        if k:
            parts.append(None)
        words = piece.strip()
        if words:
            before, after = piece.split(words)
            parts.append(f"{before}{_add_slot(texts, Segment.QUESTION, words)}{after}")
        elif piece:
            parts.append(piece)
    if turn.instruction:
        slot = _add_slot(texts, Segment.INSTRUCTION, turn.instruction)
        instruction = (joint if turn.text else "") + slot
        if parts and parts[-1] is not None:
            parts[-1] += instruction
        else:
            parts.append(instruction)
    return tuple(parts)


def _add_slot(texts: list[MessageText], segment: Segment, words: str) -> str:
    """Add a text, and return the slot that stands for it."""
    texts.append(MessageText(segment, words))
    return _write_slot(len(texts) - 1)


def _write_slot(number: int) -> str:
    return f"\ue000{number}\ue001"
