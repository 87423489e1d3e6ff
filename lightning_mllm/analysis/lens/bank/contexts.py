"""Which words of which texts a bank keeps.

A state of a causal LLM depends on the tokens up to its own, so that texts with equal beginnings
have equal states: each distinct beginning is one context. Of each token some contexts are drawn, as
by a reservoir. The draw depends on the seed and the contexts alone, not on the order of the texts.

The first positions are left out. Their states are unlike all others (attention sinks), and hardly
contextual.
"""

from __future__ import annotations

import heapq
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from transformers import PreTrainedTokenizerBase

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.progress import track

FIRST_POSITION = 2  # of a state that is kept
_WIDE = ("W", "F")  # characters of scripts without blanks between words
_JOINS = "'\u2019-"  # within a word
_SHOWN = 120  # characters of a context


@dataclass(frozen=True)
class BankContext:
    """A word of a text, up to which the LLM reads it.

    Attributes:
        text: Which of the texts.
        position: Place among the text's tokens.
        token_id: The token there.
        word: The whole word that the token is a part of.
        context: The text up to the end of the word, its last 120 characters.
    """

    text: int
    position: int
    token_id: int
    word: str
    context: str


@dataclass(frozen=True)
class EncodedText:
    """A text as tokens.

    Attributes:
        ids: The tokens, with those that the tokenizer adds.
        offsets: First and last character of each token; equal for those that are added.
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


def draw_bank_contexts(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    per_token: int,
    seed: int,
    max_length: int,
) -> list[BankContext]:
    """Draw contexts of each token, ordered by token.

    Args:
        texts: The texts.
        tokenizer: The model's.
        per_token: Most contexts of a token.
        seed: Seed of the draw.
        max_length: How many tokens of a text are read.

    Raises:
        ConfigError: The tokenizer does not say which characters a token stands for.
        DataError: No text has a third token.
    """
    drawn: dict[int, list[tuple[int, int, int]]] = {}  # token -> (-rank, text, position), a heap
    ranks: dict[int, set[int]] = {}
    for number, text in enumerate(track(texts, "Choosing words of texts")):
        encoded = encode_bank_text(text, tokenizer, max_length)
        for position, rank in _rank_prefixes(encoded.ids, seed):
            start, end = encoded.offsets[position]
            if end == start or not text[start:end].strip():
                continue  # what the tokenizer adds, or a blank
            token = encoded.ids[position]
            heap, known = drawn.setdefault(token, []), ranks.setdefault(token, set())
            if rank in known:
                continue
            if len(heap) < per_token:
                heapq.heappush(heap, (-rank, number, position))
                known.add(rank)
            elif rank < -heap[0][0]:
                known.remove(-heapq.heapreplace(heap, (-rank, number, position))[0])
                known.add(rank)
    if not drawn:
        raise DataError(
            f"None of {len(texts)} texts has a token after its first two, which no bank keeps. "
            "Give whole sentences or captions, a line each."
        )
    contexts = []
    for token in sorted(drawn):
        for _, number, position in sorted(drawn[token], reverse=True):
            encoded = encode_bank_text(texts[number], tokenizer, max_length)
            start, end = grow_to_word(texts[number], *encoded.offsets[position])
            shown = " ".join(texts[number][max(0, end - _SHOWN) : end].split())
            word = texts[number][start:end].strip()
            contexts.append(BankContext(number, position, token, word, shown))
    return contexts


def encode_bank_text(text: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedText:
    """Return a text's first tokens, with those that the tokenizer itself adds, such as `<s>`.

    Raises:
        ConfigError: The tokenizer does not say which characters a token stands for.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"A bank needs to know which characters a token stands for, which a "
            f"{type(tokenizer).__name__} does not say. Use a checkpoint with a tokenizer.json."
        )
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"][:max_length], encoded["offset_mapping"][:max_length]
    return EncodedText(tuple(ids), tuple((start, end) for start, end in offsets))


def grow_to_word(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the whole word that a part of a text is in, without the blanks at its beginning.

    Punctuation, and characters of scripts without blanks between words, stay as they are.

    Args:
        text: The text.
        start: The part's first character.
        end: The character after its last one.
    """
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if not any(_is_of_word(text, place) for place in range(start, end)):
        return start, end
    while start > 0 and _is_of_word(text, start) and _is_of_word(text, start - 1):
        start -= 1
    while end < len(text) and _is_of_word(text, end - 1) and _is_of_word(text, end):
        end += 1
    return start, end


def _is_of_word(text: str, place: int) -> bool:
    """Return whether a character is in a word that has blanks around it."""
    return is_in_word(text, place) and unicodedata.east_asian_width(text[place]) not in _WIDE


def is_in_word(text: str, place: int) -> bool:
    """Return whether a character is a letter or digit, or a hyphen or apostrophe between two."""
    letter = text[place]
    if letter in _JOINS:
        sides = text[max(0, place - 1) : place], text[place + 1 : place + 2]
        return all(side.isalnum() for side in sides)
    return unicodedata.category(letter)[0] in "LMN"


def _rank_prefixes(ids: Sequence[int], seed: int) -> Iterator[tuple[int, int]]:
    """Yield each position that can be kept, and a number that its tokens so far and the seed give.

    The number looks random; the contexts with the lowest ones are drawn.
    """
    digest = blake2b(f"bank/{seed}".encode(), digest_size=8)
    for position, token in enumerate(ids):
        digest.update(token.to_bytes(4, "little"))
        if position >= FIRST_POSITION:
            yield position, int.from_bytes(digest.copy().digest(), "little")
