"""The tokens that a model does not read as text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_mllm.errors import CheckpointError

_Range = tuple[int, int]  # characters, end exclusive


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


def wants_bos(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Return whether the tokenizer has to add its BOS to a text, which may have one already."""
    return tokenizer.bos_token is None or not text.startswith(str(tokenizer.bos_token))


def tokenise_quotes(
    tokenizer: PreTrainedTokenizerBase, pattern: re.Pattern[str], text: str, quotes: Sequence[_Range]
) -> tuple[Tensor, Tensor]:
    """Tokenise a text in whose `quotes` special tokens are read as text; return ids (n,) and character ranges (n, 2).

    The text is cut at its own special tokens, as the tokenizer itself cuts it.

    Args:
        tokenizer: A fast one.
        pattern: Finds special tokens.
        text: The text.
        quotes: Where special tokens are mere text.

    Raises:
        CheckpointError: This tokenizer reads a text otherwise when it is cut there.
    """
    found = [match.span() for match in pattern.finditer(text)]
    inside = [any(start < end_ and start_ < end for start_, end_ in quotes) for start, end in found]
    special = [span for span, quoted in zip(found, inside, strict=True) if not quoted]
    harmless = text
    for (start, end), quoted in zip(found, inside, strict=True):
        if quoted:
            harmless = harmless[:start] + "x" * (end - start) + harmless[end:]
    whole = tokenizer(harmless, add_special_tokens=wants_bos(tokenizer, text), verbose=False)["input_ids"]
    if _tokenise_sections(tokenizer, harmless, special)[0] != whole:
        raise CheckpointError(
            f"The tokenizer ({type(tokenizer).__name__}) reads a text otherwise when it is cut at its special tokens, "
            "so `split_special_tokens` can't be trusted with it. Remove special tokens from the texts instead."
        )
    ids, offsets = _tokenise_sections(tokenizer, text, special)
    return torch.tensor(ids), torch.tensor(offsets)


def _tokenise_sections(
    tokenizer: PreTrainedTokenizerBase, text: str, special: Sequence[_Range]
) -> tuple[list[int], list[_Range]]:
    """Tokenise what stands between the `special` tokens as mere text."""
    ids: list[int] = []
    offsets: list[_Range] = []
    begin = 0
    for start, end in [*special, (len(text), len(text))]:
        encoding = tokenizer(
            text[begin:start],
            add_special_tokens=begin == 0 and wants_bos(tokenizer, text),
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        ids += encoding["input_ids"]
        offsets += [(begin + first, begin + last) for first, last in encoding["offset_mapping"]]
        if start < end:
            number = tokenizer.convert_tokens_to_ids(text[start:end])
            assert isinstance(number, int)  # of one token
            ids.append(number)
            offsets.append((start, end))
        begin = end
    return ids, offsets
