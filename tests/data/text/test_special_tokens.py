import pytest
import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from lightning_mllm.data import Collator, ConversationPrompt, load_processor
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.text.special_tokens import (
    build_special_token_pattern,
    find_special_token_ids,
    tokenise_special_quotes,
)
from lightning_mllm.errors import CheckpointError, DataError
from lightning_mllm.types import Sample, Segment, Turn
from tests.data.conftest import collate, decode, picture
from tests.data.loading.test_datamodule import Memory
from tests.data.text.test_hub_templates import LLAMA3_SPECIAL, llama3_tokenizer
from tests.data.text.test_sentencepiece import llama_tokenizer


def test_tokens_without_a_role_are_special_too() -> None:
    tokenizer = llama3_tokenizer()

    assert find_special_token_ids(tokenizer) == set(range(len(LLAMA3_SPECIAL)))
    assert find_special_token_ids(tokenizer) > set(tokenizer.all_special_ids)


def test_unknown_text_is_not_special(tiny_llava: str) -> None:
    tokenizer = llama_tokenizer()
    assert tokenizer.unk_token_id not in find_special_token_ids(tokenizer)
    assert load_processor(tiny_llava).tokenizer.eos_token_id in find_special_token_ids(
        load_processor(tiny_llava).tokenizer
    )


@pytest.mark.parametrize(
    ("text", "found"), [("a <s> b", "<s>"), ("<S>", None), ("x<im>", "<im>"), ("a < s >", None)]
)
def test_special_tokens_are_found_in_texts(text: str, found: str | None) -> None:
    match = build_special_token_pattern(llama_tokenizer(), "<im>").search(text)
    assert (match and match.group()) == found


QUOTES = "What is <s> in </s> HTML, and <image>?"


def quoting(question: str = QUOTES, answer: str = "Say <s>.") -> Sample:
    """Two exchanges, a quote in the first question and in the last answer."""
    first = [Turn("user", question, images=1), Turn("assistant", "two")]
    return Sample(
        id="a",
        images=[picture()],
        conversation=[*first, Turn("user", "And?"), Turn("assistant", answer)],
    )


def test_quoted_special_tokens_are_read_as_text(processor: CheckpointProcessor) -> None:
    specials = [processor.tokenizer.bos_token, processor.tokenizer.eos_token]
    question, answer = (
        text.replace("<s>", specials[0]).replace("</s>", specials[1])
        for text in (QUOTES, "Say <s>.")
    )
    sample = quoting(question, answer)

    batch = collate(Collator(processor, ConversationPrompt(), split_special_tokens=True), sample)

    special = torch.tensor(sorted(find_special_token_ids(processor.tokenizer)))
    quiet = collate(Collator(processor, ConversationPrompt()), quoting("What?", "Say."))
    assert torch.isin(batch.input_ids, special).sum() == torch.isin(quiet.input_ids, special).sum()
    assert (
        decode(processor, batch, Segment.QUESTION)
        .replace(" ", "")
        .startswith(question.replace(" ", ""))
    )
    assert decode(processor, batch, Segment.ANSWER).strip().endswith(f"{answer}{specials[1]}")
    assert batch.spans[Segment.IMAGE].sum() == quiet.spans[Segment.IMAGE].sum()
    with pytest.raises(
        DataError, match="or set `split_special_tokens: true` if the text quotes it"
    ):
        collate(Collator(processor, ConversationPrompt()), sample)


def test_texts_without_special_tokens_are_read_as_ever(processor: CheckpointProcessor) -> None:
    sample = quoting("What is it?", "Nothing.")
    split, whole = (
        Collator(processor, ConversationPrompt(), split_special_tokens=flag)
        for flag in (True, False)
    )

    assert torch.equal(collate(split, sample).input_ids, collate(whole, sample).input_ids)


@pytest.mark.parametrize(
    "tokenizer", [llama_tokenizer(), llama3_tokenizer()], ids=["llama", "llama-3"]
)
def test_a_text_is_cut_as_the_tokenizer_cuts_it(tokenizer: PreTrainedTokenizerFast) -> None:
    bos, end = str(tokenizer.bos_token), str(tokenizer.eos_token)
    text = f"{bos}user: one{end} two {bos} three{end}<image>\nfour"
    quote = text.index(f"{bos} three")

    ids, offsets = tokenise_special_quotes(
        tokenizer, build_special_token_pattern(tokenizer), text, [(quote - 5, quote + 5)]
    )

    ended, image = (tokenizer.convert_tokens_to_ids(token) for token in (end, "<image>"))
    assert [int(number) for number in ids if int(number) in find_special_token_ids(tokenizer)] == [
        tokenizer.bos_token_id,
        ended,
        ended,
        image,
    ]
    for number, (start, stop) in zip(ids.tolist(), offsets.tolist(), strict=True):
        if number in find_special_token_ids(tokenizer):
            assert text[start:stop] == tokenizer.convert_ids_to_tokens(number)
    whole = text.replace(f"{bos} three", "so three")
    cut, _ = tokenise_special_quotes(tokenizer, build_special_token_pattern(tokenizer), whole, [])
    assert cut.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_a_tokenizer_that_reads_a_cut_text_otherwise_is_refused() -> None:
    tokenizer = llama_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|x|>", lstrip=True, special=True)]}
    )

    with pytest.raises(CheckpointError, match="`split_special_tokens` can't be trusted with it"):
        tokenise_special_quotes(
            tokenizer, build_special_token_pattern(tokenizer), "one  <|x|> two <s>", [(11, 20)]
        )


def test_quotes_are_an_option_of_the_data(tiny_llava: str) -> None:
    module = Memory([quoting()], [quoting()], checkpoint=tiny_llava, split_special_tokens=True)
    module.setup("fit")

    assert not (
        next(iter(module.train_dataloader())).labels == module.processor.tokenizer.bos_token_id
    ).any()
