import pytest

from lightning_mllm.data import load_processor
from lightning_mllm.data.special_tokens import special_ids, special_pattern
from tests.data.test_hub_templates import LLAMA3_SPECIAL, llama3_tokenizer
from tests.data.test_sentencepiece import llama_tokenizer


def test_tokens_without_a_role_are_special_too() -> None:
    tokenizer = llama3_tokenizer()

    assert special_ids(tokenizer) == set(range(len(LLAMA3_SPECIAL)))
    assert special_ids(tokenizer) > set(tokenizer.all_special_ids)


def test_unknown_text_is_not_special(tiny_llava: str) -> None:
    tokenizer = llama_tokenizer()
    assert tokenizer.unk_token_id not in special_ids(tokenizer)
    assert load_processor(tiny_llava).tokenizer.eos_token_id in special_ids(load_processor(tiny_llava).tokenizer)


@pytest.mark.parametrize(("text", "found"), [("a <s> b", "<s>"), ("<S>", None), ("x<im>", "<im>"), ("a < s >", None)])
def test_special_tokens_are_found_in_texts(text: str, found: str | None) -> None:
    match = special_pattern(llama_tokenizer(), "<im>").search(text)
    assert (match and match.group()) == found
