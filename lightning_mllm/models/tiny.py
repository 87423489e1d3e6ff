"""Builds small, complete checkpoints in the Hugging Face format offline, to try things out.

Weights are random. Everything else is real: `AutoModelForImageTextToText` and `AutoProcessor` open
the folder as they open `llava-hf/llava-1.5-7b-hf`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lightning_mllm.errors import ConfigError
from lightning_mllm.store.files import replacing_folder

TinyFamily = Literal["llava", "llava_next"]
Chat = Literal["vicuna", "llama3"]

_IMAGE = "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
_TEXT = (
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
)

CHAT_TEMPLATES: dict[str, str] = {
    "vicuna": (
        "{% for message in messages %}{% if message['role'] != 'system' %}{{ "
        "message['role'].upper() }}: {% endif %}"
        + _IMAGE
        + _TEXT
        + " {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ "
        "message['role'] }}<|end_header_id|>\n\n"
        + _IMAGE
        + _TEXT
        + "<|eot_id|>{% endfor %}"
        + "{% if add_generation_prompt %}"
        + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
}
SPECIAL_TOKENS: dict[str, list[str]] = {
    "vicuna": ["<pad>", "<s>", "</s>", "<image>"],
    "llama3": [
        "<pad>",
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<image>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    ],
}
_ADDS_TO_THE_RESIDUAL = ("out_proj.weight", "fc2.weight", "o_proj.weight", "down_proj.weight")
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


@dataclass(frozen=True)
class TinySize:
    """Shape of a tiny checkpoint; by default 0.2 million parameters and 16 visual tokens per view.

    Attributes:
        image_size: Side of the pictures that the tower reads, in pixels.
        patch_size: Side of a patch, in pixels.
        vision_width: Width of the vision tower.
        vision_layers: Number of layers of the vision tower.
        text_width: Width of the LLM.
        text_layers: Number of layers of the LLM.
        heads: Number of attention heads per layer, in tower and LLM.
        vocabulary: Largest number of tokens of the tokenizer.
        context: Largest number of positions.
    """

    image_size: int = 28
    patch_size: int = 7
    vision_width: int = 32
    vision_layers: int = 3
    text_width: int = 64
    text_layers: int = 2
    heads: int = 4
    vocabulary: int = 512
    context: int = 1024


def build_tiny_checkpoint(
    output: Path,
    family: TinyFamily = "llava",
    chat: Chat = "vicuna",
    size: TinySize | None = None,
    *,
    seed: int = 0,
    corpus: str = CORPUS,
    to_train: bool = False,
) -> Path:
    """Build a small checkpoint with random weights and save it as a Hugging Face folder.

    Args:
        output: Folder to create; it must not exist, or be empty.
        family: Model type: `llava` (1.5) or `llava_next` (1.6).
        chat: Chat template and special tokens: those of Vicuna or of Llama 3.
        size: Shape of the model.
        seed: Seed of the weights; the global random state does not change.
        corpus: Text that the tokenizer's byte-pair merges are learnt from.
        to_train: Whether weights are scaled for a model that is trained from scratch: layers add
            less to the residual stream (GPT-2's rule), and positions are weaker. A random LLM that
            stays frozen passes on more without it.

    Returns:
        The folder.

    Raises:
        ConfigError: The folder has something in it.
    """
    output, size = Path(output), size or TinySize()
    if output.exists() and any(output.iterdir()):
        raise ConfigError(
            f"{output} is not empty, and nothing is overwritten. Choose another folder or remove "
            "it."
        )
    tokenizer = _tokenizer(chat, size, corpus)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(family, size, tokenizer)
        _initialise(model, size, to_train)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with replacing_folder(output) as folder:
        model.save_pretrained(folder)
        _processor(family, size, tokenizer, CHAT_TEMPLATES[chat]).save_pretrained(folder)
    return output


def _tokenizer(chat: Chat, size: TinySize, corpus: str) -> PreTrainedTokenizerFast:
    pad, bos, eos, image, *others = SPECIAL_TOKENS[chat]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=SPECIAL_TOKENS[chat],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # a merge needs a pair that occurs twice
    tokenizer.train_from_iterator(corpus.splitlines() * 2, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    headers = {f"header_{number}_token": token for number, token in enumerate(others)}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        extra_special_tokens={"image_token": image, **headers},
        padding_side="left",
        model_max_length=size.context,
    )


def _model(
    family: TinyFamily, size: TinySize, tokenizer: PreTrainedTokenizerFast
) -> LlavaForConditionalGeneration | LlavaNextForConditionalGeneration:
    shared: dict[str, Any] = {
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": size.vision_width,
            "intermediate_size": 4 * size.vision_width,
            "num_hidden_layers": size.vision_layers,
            "num_attention_heads": size.heads,
            "image_size": size.image_size,
            "patch_size": size.patch_size,
            "projection_dim": size.vision_width,
        },
        "text_config": {
            "model_type": "llama",
            "hidden_size": size.text_width,
            "intermediate_size": 4 * size.text_width,
            "num_hidden_layers": size.text_layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": size.context,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_seq_length": (size.image_size // size.patch_size) ** 2,
        "tie_word_embeddings": False,
    }
    if family == "llava":
        return LlavaForConditionalGeneration(LlavaConfig(**shared))
    config = LlavaNextConfig(**shared, image_grid_pinpoints=_pinpoints(size))
    return LlavaNextForConditionalGeneration(config)


@torch.no_grad()
def _initialise(model: PreTrainedModel, size: TinySize, to_train: bool) -> None:
    """Scale the weights so that an untrained model passes on what it sees.

    The usual standard deviation of 0.02 is meant for thousands of channels. Here a patch's position
    would vanish beside its content, and all logits would stay near 0, whatever the input. So
    weights have a variance of 1 / fan-in and embeddings one of 1. To learn to see, a tower does
    better with weaker positions and residual branches.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            std = parameter[0].numel() ** -0.5
            if "embed_tokens" in name:
                std = 1.0
            elif "position_embedding" in name:
                std = 0.1 if to_train else 1.0
            elif to_train and name.endswith(_ADDS_TO_THE_RESIDUAL):
                layers = size.vision_layers if "vision_tower" in name else size.text_layers
                std *= (2 * layers) ** -0.5
            parameter.normal_(std=std)


def _processor(
    family: TinyFamily, size: TinySize, tokenizer: PreTrainedTokenizerFast, template: str
) -> LlavaProcessor | LlavaNextProcessor:
    side = size.image_size
    image_options: dict[str, Any] = {
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
    }
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "patch_size": size.patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": template,
    }
    if family == "llava":
        return LlavaProcessor(CLIPImageProcessorPil(**image_options), **options)
    pinpoints = _pinpoints(size)
    image_processor = LlavaNextImageProcessorPil(**image_options, image_grid_pinpoints=pinpoints)
    return LlavaNextProcessor(image_processor, **options)


def _pinpoints(size: TinySize) -> list[list[int]]:
    side = size.image_size
    tiles = [(1, 2), (2, 1), (2, 2), (1, 3), (3, 1)]
    return [[rows * side, columns * side] for rows, columns in tiles]
