"""Trains a small byte-pair tokenizer with a family's special tokens."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lightning_mllm.models.tiny.blueprint import SpecialTokens
from lightning_mllm.models.tiny.size import TinySize

# Words that the byte-pair merges are learnt from. Any other text still encodes, byte by byte.
CORPUS = """
A chat between a curious user and an artificial intelligence assistant. USER: ASSISTANT: user \
assistant system
Classify the image into one of the following categories of handwritten digits, textures, objects: \
"zero", "one",
"two", "three", "four", "five", "six", "seven", "eight", "nine". Answer with one category and \
nothing else. Output:
It is zero one two three four five six seven eight nine and ten. What is shown in this picture? \
Which colour is the
shape on the left or right? red green blue yellow circle square triangle Answer the question \
using a single word or
phrase. yes no the is there any of and what which
"""


def train_tokenizer(
    tokens: SpecialTokens, size: TinySize, corpus: str, processor_class: str
) -> PreTrainedTokenizerFast:
    """Return a tokenizer that learnt its merges from a corpus.

    Args:
        tokens: Special tokens; they get the first ids.
        size: Shape of the checkpoint.
        corpus: Text; each line is an example.
        processor_class: Name of the processor that the tokenizer belongs to.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=tokens.special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # a merge needs a pair that occurs twice
    tokenizer.train_from_iterator(corpus.splitlines() * 2, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens.plain])
    if tokens.bos and tokens.adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens.bos} $A",
            special_tokens=[(tokens.bos, tokenizer.token_to_id(tokens.bos))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=tokens.pad,
        eos_token=tokens.eos,
        **({"bos_token": tokens.bos} if tokens.bos else {}),
        extra_special_tokens=tokens.attributes,
        padding_side="left",
        model_max_length=size.context,
        processor_class=processor_class,
    )
