"""From a conversation to the text that the model reads, with the place of each segment in it.

The chat template is run once per *shape* of conversation, on stand-ins for the texts; the texts are then put in their
places. So every place is known, nothing is searched for, and no text can be mistaken for another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError
from transformers import ProcessorMixin

from lightning_mllm.data.prompts import Dialogue
from lightning_mllm.data.special_tokens import special_ids
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.types import Segment, Turn

_STAND_IN = re.compile("\ue000([0-9]+)\ue001")  # private-use characters: no template writes them


@dataclass(frozen=True)
class Place:
    """Characters `start` to `end` (exclusive) of a rendered text, and what stands there."""

    segment: Segment
    start: int
    end: int


@dataclass(frozen=True)
class RenderedText:
    """A conversation as text.

    Attributes:
        text: One image token per image; no BOS unless the template writes it.
        slots: Where the texts of system, question, instruction and answer are, exactly.
        answers: Per answer, where the loss is: from behind the prompt to the end of the end-of-turn token.
    """

    text: str
    slots: tuple[Place, ...]
    answers: tuple[Place, ...]


@dataclass(frozen=True)
class _Shape:
    """All that the template's output depends on, texts aside."""

    system: bool
    turns: tuple[tuple[str, int, bool, bool], ...]  # role, images, has text, has instruction
    joint: str
    cue: str


_Piece = str | int  # literal text, or the number of a stand-in
_Exchange = tuple[tuple[_Piece, ...], tuple[_Piece, ...]]  # what opens an answer, and the answer with its end


class Renderer:
    """Writes conversations out for one checkpoint.

    Attributes:
        image_token: What the template writes for an image.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self._processor = processor
        self.image_token: str = processor.image_token  # type: ignore[attr-defined]  # of each family's own class
        self._skeletons: dict[_Shape, tuple[_Exchange, ...]] = {}

    def render(self, dialogue: Dialogue) -> RenderedText:
        """Write a conversation out.

        A system text that the template drops or repeats is put before the first turn, with a blank, where turns open
        with plain words ("USER:"): there it is no more than that.

        Raises:
            CheckpointError: The chat template rewrites earlier turns, or drops or repeats a text.
            ConfigError: The chat template refuses the conversation, e.g. its system text.
        """
        skeleton = self._plain(dialogue.turns) if dialogue.plain else self._skeleton(dialogue)
        texts = _texts(dialogue)
        text = ""
        slots: list[Place] = []
        answers: list[Place] = []
        for opening, answer in skeleton:
            for piece in opening:
                text = _append(text, piece, texts, slots)
            start = len(text)
            for piece in answer:
                text = _append(text, piece, texts, slots)
            answers.append(Place(Segment.ANSWER, start, len(text)))
        return RenderedText(text, tuple(slots), tuple(answers))

    def _plain(self, turns: tuple[Turn, ...]) -> tuple[_Exchange, ...]:
        return (((self.image_token * turns[0].images,), (_number(1, Segment.ANSWER), "\n")),)

    def _skeleton(self, dialogue: Dialogue) -> tuple[_Exchange, ...]:
        shape = _Shape(
            bool(dialogue.system),
            tuple((turn.role, turn.images, bool(turn.text), bool(turn.instruction)) for turn in dialogue.turns),
            dialogue.joint,
            dialogue.cue,
        )
        if shape not in self._skeletons:
            self._skeletons[shape] = self._build_skeleton(shape)
        return self._skeletons[shape]

    def _build_skeleton(self, shape: _Shape) -> tuple[_Exchange, ...]:
        """Return, per answer, the pieces that open it and its own pieces, end-of-turn token included."""
        exchanges = self._exchanges(shape)
        if _all_there(shape, exchanges):
            return exchanges
        bare = replace(shape, system=False)
        if shape.system and _all_there(bare, exchanges := self._exchanges(bare)):
            return self._with_system(exchanges)
        raise CheckpointError(
            "The chat template does not write each text of a conversation exactly once. Use a template that does."
        )

    def _exchanges(self, shape: _Shape) -> tuple[_Exchange, ...]:
        messages = [_message("system", [_text(_number(-1, Segment.SYSTEM))])] if shape.system else []
        exchanges = []
        written = between = ""
        for k, (role, images, has_text, has_instruction) in enumerate(shape.turns):
            if role == "user":
                numbers = [_number(k, Segment.QUESTION)] * has_text
                numbers += [_number(k, Segment.INSTRUCTION)] * has_instruction
                text = shape.joint.join(_stand_in(number) for number in numbers)
                content = [{"type": "image"}] * images + ([{"type": "text", "text": text}] if text else [])
                messages.append(_message("user", content))
                continue
            prompt = self._template(messages, add_generation_prompt=True)
            opening = between + _behind(written, prompt) + shape.cue
            messages.append(_message("assistant", [_text(_number(k, Segment.ANSWER))]))
            written = self._template(messages, add_generation_prompt=False)
            continuation = _behind(prompt, written)
            if (prompt + shape.cue)[
                -1:
            ].isspace():  # Llama 3 on the hub: line breaks on both sides would become one token
                continuation = continuation.lstrip()
            answer, between = self._end_answer(continuation)
            exchanges.append((_pieces(opening), _pieces(answer)))
        return tuple(exchanges)

    def _with_system(self, exchanges: tuple[_Exchange, ...]) -> tuple[_Exchange, ...]:
        (opening, answer), *rest = exchanges
        first = opening[0] if isinstance(opening[0], str) else ""
        bos = str(self._processor.tokenizer.bos_token or "")
        literals = [
            piece for exchange in exchanges for pieces in exchange for piece in pieces if isinstance(piece, str)
        ]
        once = sum(literal.count(bos) for literal in literals) == 1  # else it opens each turn
        start = bos if bos and once and first.startswith(bos) else ""
        words = first.removeprefix(start)
        if not words[:1].isalpha():
            raise CheckpointError(
                "The chat template does not write the system text exactly once, and its turns open with "
                f"{words[:20]!r}, not with plain words that it could stand before. Set `prompt.system: null`, or use a "
                "template with a system turn."
            )
        behind = (_number(-1, Segment.SYSTEM), f" {words}", *opening[1:])
        return (((start, *behind) if start else behind, answer), *rest)

    def _template(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        try:
            return str(
                self._processor.apply_chat_template(
                    messages, add_generation_prompt=add_generation_prompt, tokenize=False
                )
            )
        except TemplateError as error:
            roles = [message["role"] for message in messages]
            way_out = ". Set `prompt.system: null`." if "system" in roles else ""
            raise ConfigError(
                f"The checkpoint's chat template refuses a conversation of {roles}: {error}{way_out}"
            ) from error

    def _end_answer(self, continuation: str) -> tuple[str, str]:
        """Return an answer with its end-of-turn token, and what the template writes between it and the next turn."""
        stripped = continuation.rstrip()
        *_, end = _STAND_IN.split(stripped)
        eos = str(self._processor.tokenizer.eos_token)
        if end.strip() != eos and end.strip().replace("\\", "/") == eos:  # llava-v1.6-mistral on the hub writes "<\\s>"
            stripped, end = stripped.removesuffix(end.strip()) + eos, eos
        if not end.strip():  # Hugging Face's LLaVA templates write no end; Vicuna's turns follow it without a space
            return stripped + eos, ""
        ids = self._processor.tokenizer.encode(end.strip(), add_special_tokens=False)
        if ids[-1] not in special_ids(self._processor.tokenizer):
            raise CheckpointError(
                f"The chat template ends the assistant's turn with {end!r}, in which no special token can end the "
                "answer. Use a template that ends it with the end-of-sequence token, or with nothing."
            )
        return stripped, continuation[len(continuation.rstrip()) :]


def _append(text: str, piece: _Piece, texts: dict[int, tuple[Segment, str]], slots: list[Place]) -> str:
    if isinstance(piece, str):
        return text + piece
    segment, words = texts[piece]
    slots.append(Place(segment, len(text), len(text) + len(words)))
    return text + words


def _texts(dialogue: Dialogue) -> dict[int, tuple[Segment, str]]:
    texts = {_number(-1, Segment.SYSTEM): (Segment.SYSTEM, dialogue.system.strip())}
    for k, turn in enumerate(dialogue.turns):
        if turn.role == "assistant":
            texts[_number(k, Segment.ANSWER)] = (Segment.ANSWER, turn.text)
        else:
            texts[_number(k, Segment.QUESTION)] = (Segment.QUESTION, turn.text)
            texts[_number(k, Segment.INSTRUCTION)] = (Segment.INSTRUCTION, turn.instruction)
    return texts


def _number(turn: int, segment: Segment) -> int:
    """Number the stand-in of a turn's text; the system text is turn -1."""
    return 2 * (turn + 1) + (segment is Segment.INSTRUCTION)


def _stand_in(number: int) -> str:
    return f"\ue000{number}\ue001"


def _text(number: int) -> dict[str, str]:
    return {"type": "text", "text": _stand_in(number)}


def _message(role: str, content: list[dict[str, str]]) -> dict[str, Any]:
    return {"role": role, "content": content}


def _pieces(text: str) -> tuple[_Piece, ...]:
    literal_and_numbers = _STAND_IN.split(text)  # literal, number, literal, number, ..., literal
    return tuple(int(part) if k % 2 else part for k, part in enumerate(literal_and_numbers) if part)


def _behind(prefix: str, text: str) -> str:
    if not text.startswith(prefix):
        raise CheckpointError(
            "The chat template rewrites earlier turns when a turn is added, so the end of the prompt can't be told. "
            f"It wrote {prefix[-80:]!r}, then {text[: len(prefix)][-80:]!r}. Use a template that only appends."
        )
    return text[len(prefix) :]


def _all_there(shape: _Shape, exchanges: tuple[_Exchange, ...]) -> bool:
    found = sorted(piece for opening, answer in exchanges for piece in opening + answer if isinstance(piece, int))
    expected = [_number(-1, Segment.SYSTEM)] * shape.system
    for k, (role, _, has_text, has_instruction) in enumerate(shape.turns):
        expected += [_number(k, Segment.QUESTION)] * (has_text or role == "assistant")
        expected += [_number(k, Segment.INSTRUCTION)] * has_instruction
    return found == expected
