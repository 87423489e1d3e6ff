"""How many tokens a text can have at most, found from its bytes without tokenising it."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

# models that cut a text into characters, and then only ever join these
_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
_ASCII = [chr(number) for number in range(128)]
_GAPS = ("a  b", "a   b", "a\n\nb", "a \n b", "a\t\tb")
_START = 2  # tokens that no byte stands for: BOS, and a blank that is put in front


class TokenBound:
    """Bounds the tokens of a text by its bytes, for tokenizers and texts for which this is sound.

    A tokenizer starts from characters, or from the bytes of those that its vocabulary lacks, and
    joins them: a normalised text has no more tokens than it has of these. So the number of bytes
    is a bound if no character becomes more pieces than it has bytes, as "½" does where a
    normaliser writes 1/2. Each character that occurs is tried once: is this so, and is it read
    back as it was written? If one fails ("▁" does with Llama's tokenizer, which reads a blank),
    no bound of the text is known before it is tokenised.

    Args:
        tokenizer: A fast tokenizer, whose parts can be run alone.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._backend: Any = tokenizer.backend_tokenizer  # of fast ones
        model = self._backend.model
        self._is_known = type(model).__name__ in _MODELS
        self._byte_fallback = bool(getattr(model, "byte_fallback", False))
        self._sound: set[str] = set()
        self._unsound: set[str] = set()
        self._try_characters(_ASCII)
        self._unsound_text = self._build_pattern()

    def bound(self, text: str) -> int | None:
        """Return the most tokens that a text can have, or None if only tokenising it can tell.

        Raises:
            UnicodeEncodeError: The text has half of a character in it.
        """
        size = len(text.encode())
        if size != len(text):
            characters = set(text)
            self._try_characters(sorted(characters - self._sound - self._unsound))
            if not characters.isdisjoint(self._unsound):
                return None
        if not self._is_known:
            return None
        if self._unsound_text is not None and self._unsound_text.search(text):
            return None
        return size + _START

    def _build_pattern(self) -> re.Pattern[str] | None:
        """Return what finds ASCII characters and sequences that are not read as they stand."""
        parts = []
        if self._unsound:
            parts.append(f"[{re.escape(''.join(sorted(self._unsound)))}]")
        if not all(map(self._reads_back, _GAPS)):
            parts.append(r"\s\s")
        for token in self._tokenizer.added_tokens_decoder.values():
            if not token.special:
                parts.append(re.escape(token.content))  # may swallow blanks beside it
        return re.compile("|".join(parts)) if parts else None

    def _try_characters(self, characters: list[str]) -> None:
        """Note of each character whether its bytes bound its tokens and it is read back."""
        for character in characters:
            text = f"a{character}a"
            most = self._count_pieces("aa") + len(character.encode())
            is_sound = (
                self._is_known and self._count_pieces(text) <= most and self._reads_back(text)
            )
            (self._sound if is_sound else self._unsound).add(character)

    def _count_pieces(self, text: str) -> int:
        """Return how many pieces a text is cut into before any are joined."""
        backend = self._backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        pieces = [text]
        if backend.pre_tokenizer is not None:
            pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return sum(map(self._count_character, "".join(pieces)))

    def _count_character(self, character: str) -> int:
        """Return 1, or the number of bytes of a character that the vocabulary lacks."""
        if not self._byte_fallback or self._backend.token_to_id(character) is not None:
            return 1
        return len(character.encode())

    def _reads_back(self, text: str) -> bool:
        """Return whether the tokens of a text decode to it."""
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return is_same_text(decode_all(self._tokenizer, ids), text)


def decode_all(tokenizer: PreTrainedTokenizerBase, ids: Tensor | list[int]) -> str:
    """Return the text of tokens, special ones included, with all blanks as they are."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text)


def is_same_text(first: str, second: str) -> bool:
    """Return whether two texts are equal but for composed characters and outer blanks."""
    normalised = [unicodedata.normalize("NFC", text).strip() for text in (first, second)]
    return normalised[0] == normalised[1]
