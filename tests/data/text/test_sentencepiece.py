"""Spans on a tokenizer like Llama 2's: no pre-tokenizer, "▁" for blanks, bytes as fallback."""

import json

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from lightning_mllm.data import (
    VICUNA_SYSTEM,
    ClassificationPrompt,
    Collator,
    ConversationPrompt,
    PlainPrompt,
    Prompt,
)
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.errors import CheckpointError
from lightning_mllm.types import IGNORE_INDEX, Segment
from tests.data.conftest import NAMES, TEXT_ONLY, chat_sample, collate, decode, labelled, tokens

SPECIAL = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]


def blanks() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def llama_tokenizer(normalized: str = "") -> PreTrainedTokenizerFast:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = (
        pre_tokenizers.Metaspace()
    )  # no piece spans two words, as in SentencePiece
    corpus = [
        VICUNA_SYSTEM,
        "USER : ASSISTANT : two three",
        "Answer with one word and nothing else. Which of the?",
    ] * 2
    trained.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    merges = [tuple(merge) for merge in model["merges"]]
    vocabulary = {piece: k for k, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = blanks()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    added = [AddedToken(token, normalized=token == normalized, special=True) for token in SPECIAL]
    tokenizer.add_special_tokens(added)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=added[2],
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=2048,
    )


@pytest.fixture
def llama(vicuna: CheckpointProcessor) -> CheckpointProcessor:
    vicuna.hf.tokenizer = llama_tokenizer()
    vicuna.config.image_token_id = 3
    return vicuna


def test_unknown_characters_are_bytes(llama: CheckpointProcessor) -> None:
    assert llama.tokenizer.tokenize("赤") == ["▁", "<0xE8>", "<0xB5>", "<0xA4>"]


def test_spans_of_a_question_decode_to_it(llama: CheckpointProcessor) -> None:
    prompt = ClassificationPrompt(task="grüne Blätter", system=VICUNA_SYSTEM)
    sample = labelled(images=2, label="Bell pepper leaf")

    batch = collate(Collator(llama, prompt, NAMES), sample)

    assert (
        decode(llama, batch, Segment.QUESTION).strip()
        == prompt.dialogue(sample, NAMES, 0).turns[0].text
    )
    assert decode(llama, batch, Segment.INSTRUCTION).strip() == prompt.instruction
    assert decode(llama, batch, Segment.SYSTEM).strip() == VICUNA_SYSTEM
    assert decode(llama, batch, Segment.ANSWER) == "Bell pepper leaf</s>"
    assert decode(llama, batch, Segment.LAST) == ":"


def test_spans_of_conversations_decode_to_their_texts(llama: CheckpointProcessor) -> None:
    batch = collate(
        Collator(llama, ConversationPrompt(), padding_side="left"), TEXT_ONLY, chat_sample(images=3)
    )

    question = decode(llama, batch, Segment.QUESTION, row=1)
    assert question.startswith("Which colour? Rot, grün — oder 赤?")
    assert decode(llama, batch, Segment.ANSWER, row=1).replace(" ", "") == "Red.</s>blue</s>"
    assert (batch.labels[1] == batch.end_id).sum() == 2
    assert tokens(batch, 1) == tokens(
        collate(Collator(llama, ConversationPrompt()), chat_sample(images=3)), 0
    )


@pytest.mark.parametrize(
    "prompt", [ClassificationPrompt(), PlainPrompt()], ids=["classification", "plain"]
)
def test_label_tokens_are_those_behind_the_prompt(
    llama: CheckpointProcessor, prompt: Prompt
) -> None:
    collator = Collator(llama, prompt, NAMES)
    labels = collator.label_set(labelled())

    for name, ids in zip(NAMES, labels.token_ids, strict=True):
        batch = collate(collator, labelled("other", label=name))
        assert tuple(batch.labels[batch.labels != IGNORE_INDEX].tolist()) == ids


def test_an_end_of_turn_that_is_read_as_text_is_refused(llama: CheckpointProcessor) -> None:
    """A normalised special token is looked for as "▁</s>", and so not found behind an answer."""
    llama.hf.tokenizer = llama_tokenizer(normalized="</s>")

    with pytest.raises(
        CheckpointError, match=r"answer .*no</s>' as text \(its last token is '<0x3E>'"
    ):
        collate(Collator(llama, ConversationPrompt()), TEXT_ONLY)
