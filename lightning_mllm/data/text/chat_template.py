"""What a checkpoint's chat template writes around the texts of a conversation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from jinja2 import TemplateError

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.text.chat_messages import (
    SYSTEM,
    ChatMessages,
    Message,
    Piece,
    split_message_at_slots,
)
from lightning_mllm.data.text.special_tokens import find_special_token_ids
from lightning_mllm.errors import CheckpointError, ConfigError

_BLANKS = re.compile(" +\n")
_QUOTED = re.compile(r"""(['"])((?:(?!\1)[^\\])+)\1""")  # strings without escapes


class TemplateExchange(NamedTuple):
    """What the template writes from the end of one answer to the end of the next.

    Attributes:
        opening: Everything up to the answer.
        answer: The answer with its end-of-turn token.
    """

    opening: tuple[Piece, ...]
    answer: tuple[Piece, ...]


class ChatTemplate:
    """Runs the chat template of one checkpoint.

    Args:
        processor: The processor of the checkpoint.
    """

    def __init__(self, processor: CheckpointProcessor) -> None:
        self._processor = processor

    @cached_property
    def quoted(self) -> re.Pattern[str]:
        """Finds the strings that the template quotes; matches nothing if it quotes none."""
        source = self._processor.chat_template
        words = {word.strip() for _, word in _QUOTED.findall(source)} - {""}
        longest_first = sorted(words, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def run(self, messages: list[Message], add_generation_prompt: bool) -> str:
        """Return what the template writes.

        Raises:
            ConfigError: It refuses the messages.
        """
        try:
            # the tokenizer's method: a processor's may want its video part first
            text = self._processor.tokenizer.apply_chat_template(
                messages,
                chat_template=self._processor.chat_template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except TemplateError as error:
            roles = [message["role"] for message in messages]
            way_out = ""
            if "system" in roles:
                way_out = ". Set `prompt.system: null` and give samples no system text."
            raise ConfigError(
                f"The checkpoint's chat template refuses a conversation of {roles}: "
                f"{error}{way_out}"
            ) from error
        return str(text)

    def lay_out(self, messages: ChatMessages) -> tuple[TemplateExchange, ...]:
        """Return the exchanges that the template writes, each text in them once.

        If the template drops or repeats the system text, it is put before the first turn.

        Raises:
            CheckpointError: The template rewrites earlier turns, or drops or repeats a text.
            ConfigError: The template refuses the messages.
        """
        exchanges = self._cut_into_exchanges(messages)
        if _has_each_slot_once(messages, exchanges):
            return exchanges
        if messages.system:
            without_system = replace(messages, system=False)
            exchanges = self._cut_into_exchanges(without_system)
            if _has_each_slot_once(without_system, exchanges):
                return self._insert_system(exchanges)
        raise CheckpointError(
            "The chat template does not write each text of a conversation exactly once. Use a "
            "template that does."
        )

    def _cut_into_exchanges(self, messages: ChatMessages) -> tuple[TemplateExchange, ...]:
        """Run the template on one message more at a time, and cut its text around the answers."""
        listed = messages.to_list()
        exchanges = []
        written = between = ""
        for k, message in enumerate(listed):
            if message["role"] != "assistant":
                continue
            before, prompt = written, self.run(listed[:k], add_generation_prompt=True)
            written = self.run(listed[: k + 1], add_generation_prompt=False)
            answered = _find_answered_prompt(prompt, written)
            continuation = _cut_prefix(answered, written)
            if k + 1 < len(listed):
                prompt = answered
            opening = between + _cut_prefix(before, prompt) + messages.cue
            if (prompt + messages.cue)[-1:].isspace():
                # Llama 3 on the hub: line breaks on both sides would become one token
                continuation = continuation.lstrip()
            answer, between = self._end_answer(continuation)
            exchanges.append(
                TemplateExchange(split_message_at_slots(opening), split_message_at_slots(answer))
            )
        return tuple(exchanges)

    def _insert_system(
        self, exchanges: tuple[TemplateExchange, ...]
    ) -> tuple[TemplateExchange, ...]:
        """Put the slot of the system text, and a blank, before the words of the first turn."""
        (opening, answer), *rest = exchanges
        first = opening[0] if isinstance(opening[0], str) else ""
        bos = str(self._processor.tokenizer.bos_token or "")
        start = ""
        if bos and first.startswith(bos) and _count_literal(bos, exchanges) == 1:
            start = bos  # BOS opens the text; if it stood more than once, it would open each turn
        words = first.removeprefix(start)
        if not words[:1].isalpha():
            raise CheckpointError(
                "The chat template does not write the system text exactly once, and its turns open "
                f"with {words[:20]!r}, not with plain words that it could stand before. Set "
                "`prompt.system: null` and give samples no system text, or use a template with a "
                "system turn."
            )
        opening = (SYSTEM, f" {words}", *opening[1:])
        return (TemplateExchange((start, *opening) if start else opening, answer), *rest)

    def _end_answer(self, continuation: str) -> tuple[str, str]:
        """Return an answer with its end-of-turn token, and the blanks before the next turn."""
        stripped = continuation.rstrip()
        pieces = split_message_at_slots(stripped)
        end = pieces[-1] if pieces and isinstance(pieces[-1], str) else ""
        eos = str(self._processor.tokenizer.eos_token)
        if end.strip() != eos and end.strip().replace("\\", "/") == eos:
            # llava-v1.6-mistral on the hub writes "<\\s>"
            stripped, end = stripped.removesuffix(end.strip()) + eos, eos
        if not end.strip():
            # Hugging Face's LLaVA templates write no end; Vicuna's turns follow it without a space
            return stripped + eos, ""
        ids = self._processor.tokenizer.encode(end.strip(), add_special_tokens=False)
        if ids[-1] not in find_special_token_ids(self._processor.tokenizer):
            raise CheckpointError(
                f"The chat template ends the assistant's turn with {end!r}, in which no special "
                "token can end the answer. Use a template that ends it with the end-of-sequence "
                "token, or with nothing."
            )
        return stripped, continuation[len(continuation.rstrip()) :]


def _find_answered_prompt(prompt: str, written: str) -> str:
    r"""Return a prompt as it stands in the text that the template writes with the answer.

    LLaVA-OneVision on the hub asks with "assistant\n", and writes "assistant \n" before answers.
    """
    start = prompt.removesuffix("\n")
    blanks = _BLANKS.match(written, len(start))
    if start == prompt or blanks is None or not written.startswith(start):
        return prompt
    return start + blanks.group()


def _cut_prefix(prefix: str, text: str) -> str:
    """Return what a text adds to a prefix of it."""
    if not text.startswith(prefix):
        raise CheckpointError(
            "The chat template rewrites earlier turns when a turn is added, so the end of the "
            f"prompt can't be found. It wrote {prefix[-80:]!r}, then "
            f"{text[: len(prefix)][-80:]!r}. Use a template that only appends."
        )
    return text[len(prefix) :]


def _has_each_slot_once(messages: ChatMessages, exchanges: Sequence[TemplateExchange]) -> bool:
    """Return whether the template wrote each text exactly once."""
    found: list[int] = []
    for exchange in exchanges:
        pieces = exchange.opening + exchange.answer
        found += [piece for piece in pieces if isinstance(piece, int)]
    return sorted(found) == messages.slots


def _count_literal(token: str, exchanges: Sequence[TemplateExchange]) -> int:
    """Return how often the template itself writes a token."""
    count = 0
    for exchange in exchanges:
        for piece in exchange.opening + exchange.answer:
            count += piece.count(token) if isinstance(piece, str) else 0
    return count
