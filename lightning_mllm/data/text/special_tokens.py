"""The tokens that a model does not read as text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_mllm.errors import CheckpointError

_Range = tuple[int, int]  # characters, end exclusive


def find_special_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of all special tokens, with those without a role (Llama 3's headers).

    The token for unknown text is not among them: text can become it.
    """
    ids = set(tokenizer.all_special_ids)
    ids |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(ids - {tokenizer.unk_token_id})


def build_special_token_pattern(
    tokenizer: PreTrainedTokenizerBase, *others: str
) -> re.Pattern[str]:
    """Return a pattern that finds special tokens, and `others`, in a text."""
    special = tokenizer.convert_ids_to_tokens(sorted(find_special_token_ids(tokenizer)))
    longest_first = sorted({*map(str, special), *others}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def describe_special(what: str, token: str, text: str) -> str:
    """Return the error of a text that has a special token in it."""
    return (
        f"{what} contains {token!r}, which the model reads as a special token, not as text: "
        f"{text[:80]!r}. Remove or rewrite it, or set `split_special_tokens: true` if the text "
        "quotes it; images are placed by the sample's images."
    )


def needs_special_bos(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Return whether the tokenizer has to add its BOS to a text, which may have one already."""
    return tokenizer.bos_token is None or not text.startswith(str(tokenizer.bos_token))


def tokenise_special_quotes(
    tokenizer: PreTrainedTokenizerBase,
    pattern: re.Pattern[str],
    text: str,
    quotes: Sequence[_Range],
) -> tuple[Tensor, Tensor]:
    """Tokenise a text in whose `quotes` special tokens are read as text.

    The text is cut at its other special tokens, as the tokenizer itself cuts it.

    Args:
        tokenizer: A fast tokenizer, which gives offsets.
        pattern: Finds the special tokens in a text.
        text: The text to tokenise.
        quotes: Character ranges in which special tokens are read as text.

    Returns:
        Token ids (n,) and their character ranges (n, 2).

    Raises:
        CheckpointError: This tokenizer reads a text differently when it is cut there.
    """
    special: list[_Range] = []
    harmless = text  # with each quoted special token overwritten
    for match in pattern.finditer(text):
        start, end = match.span()
        if any(start < last and first < end for first, last in quotes):
            harmless = harmless[:start] + "x" * (end - start) + harmless[end:]
        else:
            special.append((start, end))
    bos = needs_special_bos(tokenizer, text)
    whole = tokenizer(harmless, add_special_tokens=bos, verbose=False)["input_ids"]
    if _tokenise_sections(tokenizer, harmless, special)[0] != whole:
        raise CheckpointError(
            f"The tokenizer ({type(tokenizer).__name__}) reads a text differently when it is cut "
            "at its special tokens, so `split_special_tokens` can't be trusted with it. Remove "
            "special tokens from the texts instead."
        )
    ids, offsets = _tokenise_sections(tokenizer, text, special)
    return torch.tensor(ids), torch.tensor(offsets)


def _tokenise_sections(
    tokenizer: PreTrainedTokenizerBase, text: str, special: Sequence[_Range]
) -> tuple[list[int], list[_Range]]:
    """Tokenise what stands between the `special` tokens as plain text."""
    ids: list[int] = []
    offsets: list[_Range] = []
    begin = 0
    for start, end in [*special, (len(text), len(text))]:
        encoding = tokenizer(
            text[begin:start],
            add_special_tokens=begin == 0 and needs_special_bos(tokenizer, text),
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        ids += encoding["input_ids"]
        for first, last in encoding["offset_mapping"]:
            offsets.append((begin + first, begin + last))
        if start < end:
            number = tokenizer.convert_tokens_to_ids(text[start:end])
            assert isinstance(number, int)  # of one token
            ids.append(number)
            offsets.append((start, end))
        begin = end
    return ids, offsets
