"""How many tokens a text can have at most, told from its bytes and not from its tokens."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from transformers import PreTrainedTokenizerBase

_KINDS = ("BPE", "Unigram", "WordLevel", "WordPiece")  # they part a text into characters, and only ever join these
_ASCII = [chr(number) for number in range(128)]
_GAPS = ("a  b", "a   b", "a\n\nb", "a \n b", "a\t\tb")
_START = 2  # tokens that no byte stands for: the first of all texts, and a blank that is put in front


class TokenBound:
    """Bounds the tokens of a text by its bytes, for tokenizers and texts for which this is sound.

    A tokenizer begins with characters, or with the bytes of those that its vocabulary lacks, and joins them: a text has
    no more tokens than there are of these once it is normalised. So the bytes of a text are a bound if none of its
    characters becomes more than it has bytes, as "½" does where a normaliser writes 1/2. This, and whether a character
    is read back as it was written, is tried once for each character that occurs. Of a text with one that fails, as "▁"
    does with Llama's tokenizer, which reads a blank, nothing is known before it is tokenised.

    Args:
        tokenizer: A fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._backend: Any = tokenizer.backend_tokenizer  # of fast ones
        model = self._backend.model
        self._known = type(model).__name__ in _KINDS
        self._byte_fallback = bool(getattr(model, "byte_fallback", False))
        self._tame: set[str] = set()
        self._wild: set[str] = set()
        self._sort(_ASCII)
        self._wild_text = self._pattern()

    def __call__(self, text: str) -> int | None:
        """Return the most tokens that a text can have, or None if that takes a tokenizer.

        Raises:
            UnicodeEncodeError: The text has half of a character in it.
        """
        size = len(text.encode())
        if size != len(text):
            characters = set(text)
            self._sort(sorted(characters - self._tame - self._wild))
            if not characters.isdisjoint(self._wild):
                return None
        if not self._known or (self._wild_text is not None and self._wild_text.search(text)):
            return None
        return size + _START

    def _pattern(self) -> re.Pattern[str] | None:
        """Return what finds ASCII characters and sequences that are not read as they stand."""
        parts = [f"[{re.escape(''.join(sorted(self._wild)))}]"] if self._wild else []
        if not all(self._returns(text) for text in _GAPS):
            parts.append(r"\s\s")
        added = self._tokenizer.added_tokens_decoder.values()
        parts += [re.escape(token.content) for token in added if not token.special]  # may swallow blanks beside them
        return re.compile("|".join(parts)) if parts else None

    def _sort(self, characters: list[str]) -> None:
        for character in characters:
            text = f"a{character}a"
            most = self._symbols("aa") + len(character.encode())
            tame = self._known and self._symbols(text) <= most and self._returns(text)
            (self._tame if tame else self._wild).add(character)

    def _symbols(self, text: str) -> int:
        """Return how many pieces a text is parted into before any are joined."""
        backend = self._backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        pieces = [text]
        if backend.pre_tokenizer is not None:
            pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return sum(self._size(character) for piece in pieces for character in piece)

    def _size(self, character: str) -> int:
        if not self._byte_fallback or self._backend.token_to_id(character) is not None:
            return 1
        return len(character.encode())

    def _returns(self, text: str) -> bool:
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        decoded = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return unicodedata.normalize("NFC", str(decoded)).strip() == unicodedata.normalize("NFC", text).strip()
