"""The tokens that a model does not read as text."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of all special tokens, those without a role (such as Llama 3's headers) included.

    The token for unknown text is left out: text can become it.
    """
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset({*tokenizer.all_special_ids, *added} - {tokenizer.unk_token_id})


def special_pattern(tokenizer: PreTrainedTokenizerBase, *others: str) -> re.Pattern[str]:
    """Return a pattern that finds special tokens, and `others`, in a text."""
    tokens = {*(str(token) for token in tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))), *others}
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
