"""The bound of a text's tokens holds for all texts, whatever the tokenizer."""

import random

import pytest
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from lightning_mllm.data import load_processor
from lightning_mllm.data.text.token_bound import TokenBound
from tests.data.text.test_sentencepiece import llama_tokenizer

CHARACTERS = (
    "ab Z9.,:\n\t\0\x1b\u00a0\u00bd\u0301\u00e9\u2028\u200d\u202e\ufdfa\ufeff\u2581赤م👩\u200b<>|_"
)


def normalising(checkpoint: str, normalizer: normalizers.Normalizer) -> PreTrainedTokenizerFast:
    tokenizer = load_processor(checkpoint).tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.backend_tokenizer.normalizer = normalizer
    return tokenizer


@pytest.fixture(params=["bytes", "llama", "nfkc", "lower case"])
def tokenizer(request: pytest.FixtureRequest, tiny_llava: str) -> PreTrainedTokenizerFast:
    if request.param == "llama":
        return llama_tokenizer()
    kinds = {
        "bytes": normalizers.Sequence([]),
        "nfkc": normalizers.NFKC(),
        "lower case": normalizers.Lowercase(),
    }
    return normalising(tiny_llava, kinds[request.param])


def test_no_text_has_more_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    bound, draw = TokenBound(tokenizer).bound, random.Random(0)
    bounded = 0
    for _ in range(400):
        text = "".join(draw.choices(CHARACTERS, k=draw.randrange(30)))
        most = bound(text)
        bounded += most is not None
        assert most is None or len(tokenizer(text)["input_ids"]) <= most
    assert bounded


def test_a_text_of_plain_words_is_bounded_by_its_bytes(tiny_llava: str) -> None:
    for tokenizer in (load_processor(tiny_llava).tokenizer, llama_tokenizer()):
        assert (
            TokenBound(tokenizer).bound("What is 赤 in grün?")
            == len("What is 赤 in grün?".encode()) + 2
        )


def test_what_is_not_read_as_it_stands_is_not_bounded(tiny_llava: str) -> None:
    lower = normalising(tiny_llava, normalizers.Lowercase())
    nfkc = normalising(tiny_llava, normalizers.NFKC())

    assert TokenBound(llama_tokenizer()).bound("fill in the \u2581") is None
    assert TokenBound(nfkc).bound("\ufdfa") is None  # 3 bytes that become 33
    assert (TokenBound(lower).bound("a Word"), TokenBound(lower).bound("a word")) == (None, 8)


def test_added_tokens_that_swallow_blanks_are_not_bounded() -> None:
    tokenizer = llama_tokenizer()
    tokenizer.add_tokens(["<tool>"])

    assert TokenBound(tokenizer).bound("a <tool> b") is None
