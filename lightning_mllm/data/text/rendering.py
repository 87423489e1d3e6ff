"""From a conversation to the text that the model reads, with the place of each segment in it.

The chat template is run once per *shape* of conversation, on stand-ins for the texts; the texts are then put in their
places. So every place is known, nothing is searched for, and no text can be mistaken for another. That the template
writes texts as they are is tried on some samples (`Renderer.check`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property

from jinja2 import TemplateError
from transformers import ProcessorMixin

from lightning_mllm.data.text.chat_messages import (
    SYSTEM,
    ChatMessages,
    Message,
    Piece,
    Text,
    build_messages,
    fill,
    split,
)
from lightning_mllm.data.text.prompts import Dialogue
from lightning_mllm.data.text.special_tokens import special_ids
from lightning_mllm.data.text.turns import images_first
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.types import Segment, Turn

_SHOWN = 40  # characters that a message quotes
_QUOTED = re.compile(r"""(['"])((?:(?!\1)[^\\])+)\1""")  # strings without escapes


@dataclass(frozen=True)
class TextSpan:
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
    slots: tuple[TextSpan, ...]
    answers: tuple[TextSpan, ...]


_Exchange = tuple[tuple[Piece, ...], tuple[Piece, ...]]  # what opens an answer, and the answer with its end


class Renderer:
    """Writes conversations out for one checkpoint.

    Attributes:
        image_token: What the template writes for an image.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self._processor = processor
        self.image_token: str = processor.image_token  # type: ignore[attr-defined]  # of each family's own class
        self._skeletons: dict[ChatMessages, tuple[_Exchange, ...]] = {}
        self._checked: set[tuple[object, ...]] = set()  # shapes

    @cached_property
    def keeps_places(self) -> bool:
        """Whether the template writes an image where it stands in the text; many write a turn's images first.

        Raises:
            ConfigError: It refuses such a turn.
        """
        probe = Dialogue((Turn("user", "a b", images=1, places=(1,)), Turn("assistant", "c")))
        written = split(self._template(build_messages(probe)[0].messages()[:1], add_generation_prompt=True))
        if not {1, 2} <= {*written}:
            return False
        between = written[written.index(1) + 1 : written.index(2)]
        return len(between) == 1 and str(between[0]).count(self.image_token) == 1

    @cached_property
    def quoted(self) -> re.Pattern[str]:
        """Finds the strings that the template quotes; nothing where it quotes none."""
        template = self._processor.chat_template
        source = str(template.get("default", "") if isinstance(template, dict) else template)
        words = {word.strip() for _, word in _QUOTED.findall(source)}
        return re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True) if word) or "(?!)")

    def render(self, dialogue: Dialogue) -> RenderedText:
        """Write a conversation out.

        A system text that the template drops or repeats is put before the first turn, with a blank, where turns open
        with plain words ("USER:"): there it is no more than that. Where the template does not keep the places of
        images, they stand first in their turn.

        Raises:
            CheckpointError: The chat template rewrites earlier turns, or drops or repeats a text.
            ConfigError: The chat template refuses the conversation, e.g. its system text.
        """
        skeleton, texts = self._laid_out(dialogue)
        text = ""
        slots: list[TextSpan] = []
        answers: list[TextSpan] = []
        for opening, answer in skeleton:
            for piece in opening:
                text = _append(text, piece, texts, slots)
            start = len(text)
            for piece in answer:
                text = _append(text, piece, texts, slots)
            answers.append(TextSpan(Segment.ANSWER, start, len(text)))
        return RenderedText(text, tuple(slots), tuple(answers))

    def check_shape(self, dialogue: Dialogue) -> None:
        """See to it that the template writes conversations of this shape; costs next to nothing the second time.

        Raises:
            CheckpointError: As `render`.
            ConfigError: As `render`.
        """
        turns = tuple(
            (turn.role, turn.images, turn.places, bool(turn.text), bool(turn.instruction)) for turn in dialogue.turns
        )
        if (shape := (bool(dialogue.system), turns)) not in self._checked:
            self._laid_out(dialogue)
            self._checked.add(shape)

    def check(self, dialogue: Dialogue, sample_id: str) -> None:
        """Run the template on the texts themselves, to see whether it writes them as they are.

        Raises:
            CheckpointError: It alters one.
        """
        if dialogue.plain:
            return
        script, texts = build_messages(self._placed(dialogue))
        messages, real = script.messages(), script.messages(texts)
        for end, message in enumerate(messages, 1):
            asks = message["role"] == "user"
            expected = fill(self._template(messages[:end], add_generation_prompt=asks), texts)
            written = self._template(real[:end], add_generation_prompt=asks)
            if written != expected:
                pairs = enumerate(zip(written, expected, strict=False))
                at = next((k for k, (a, b) in pairs if a != b), min(len(written), len(expected)))
                start = max(at - _SHOWN // 2, 0)
                raise CheckpointError(
                    f"The checkpoint's chat template alters the texts of sample {sample_id!r}: it writes "
                    f"{written[start : start + _SHOWN]!r} where {expected[start : start + _SHOWN]!r} was expected. "
                    "Use a template that writes texts as they are, or take out of the texts what it alters."
                )

    def _laid_out(self, dialogue: Dialogue) -> tuple[tuple[_Exchange, ...], list[Text]]:
        """Return the pieces of a conversation, and the texts that stand in them."""
        script, texts = build_messages(self._placed(dialogue))
        if dialogue.plain:
            images = self.image_token * dialogue.turns[0].images
            return (((images,), (len(texts) - 1, "\n")),), texts
        if script not in self._skeletons:
            self._skeletons[script] = self._build_skeleton(script)
        return self._skeletons[script], texts

    def _placed(self, dialogue: Dialogue) -> Dialogue:
        if not any(turn.places for turn in dialogue.turns) or self.keeps_places:
            return dialogue
        return replace(dialogue, turns=tuple(map(images_first, dialogue.turns)))

    def _build_skeleton(self, script: ChatMessages) -> tuple[_Exchange, ...]:
        """Return, per answer, the pieces that open it and its own pieces, end-of-turn token included."""
        exchanges = self._exchanges(script)
        if _all_there(script, exchanges):
            return exchanges
        bare = replace(script, system=False)
        if script.system and _all_there(bare, exchanges := self._exchanges(bare)):
            return self._with_system(exchanges)
        raise CheckpointError(
            "The chat template does not write each text of a conversation exactly once. Use a template that does."
        )

    def _exchanges(self, script: ChatMessages) -> tuple[_Exchange, ...]:
        messages = script.messages()
        exchanges = []
        written = between = ""
        for k, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._template(messages[:k], add_generation_prompt=True)
            opening = between + _behind(written, prompt) + script.cue
            written = self._template(messages[: k + 1], add_generation_prompt=False)
            continuation = _behind(prompt, written)
            if (prompt + script.cue)[
                -1:
            ].isspace():  # Llama 3 on the hub: line breaks on both sides would become one token
                continuation = continuation.lstrip()
            answer, between = self._end_answer(continuation)
            exchanges.append((split(opening), split(answer)))
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
                f"{words[:20]!r}, not with plain words that it could stand before. Set `prompt.system: null` and give "
                "samples no system text, or use a template with a system turn."
            )
        behind = (SYSTEM, f" {words}", *opening[1:])
        return (((start, *behind) if start else behind, answer), *rest)

    def _template(self, messages: list[Message], add_generation_prompt: bool) -> str:
        try:
            return str(
                self._processor.apply_chat_template(
                    messages, add_generation_prompt=add_generation_prompt, tokenize=False
                )
            )
        except TemplateError as error:
            roles = [message["role"] for message in messages]
            way_out = ". Set `prompt.system: null` and give samples no system text." if "system" in roles else ""
            raise ConfigError(
                f"The checkpoint's chat template refuses a conversation of {roles}: {error}{way_out}"
            ) from error

    def _end_answer(self, continuation: str) -> tuple[str, str]:
        """Return an answer with its end-of-turn token, and what the template writes between it and the next turn."""
        stripped = continuation.rstrip()
        *_, end = "", *split(stripped)
        end = end if isinstance(end, str) else ""
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


def _append(text: str, piece: Piece, texts: list[Text], slots: list[TextSpan]) -> str:
    if isinstance(piece, str):
        return text + piece
    segment, words = texts[piece].segment, texts[piece].words
    slots.append(TextSpan(segment, len(text), len(text) + len(words)))
    return text + words


def _behind(prefix: str, text: str) -> str:
    if not text.startswith(prefix):
        raise CheckpointError(
            "The chat template rewrites earlier turns when a turn is added, so the end of the prompt can't be told. "
            f"It wrote {prefix[-80:]!r}, then {text[: len(prefix)][-80:]!r}. Use a template that only appends."
        )
    return text[len(prefix) :]


def _all_there(script: ChatMessages, exchanges: tuple[_Exchange, ...]) -> bool:
    found = sorted(piece for opening, answer in exchanges for piece in opening + answer if isinstance(piece, int))
    return found == script.numbers
