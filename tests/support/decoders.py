"""Small decoders of several kinds, prompts of several lengths, and what knockout tests share."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForImageTextToText,
)
from transformers.masking_utils import eager_mask

from lightning_mllm import testbed
from lightning_mllm.analysis import Block, Case, Readings, Window, Windows
from lightning_mllm.batches import MultimodalBatch, TokenSpans
from lightning_mllm.data import Collator, ConversationPrompt
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Sample, Segment, Turn
from tests.support.feature_samples import SIZES, picture
from tests.support.loaded import load_copy, read_processor

Decoder = Literal["llama", "mistral", "qwen2"]
Side = Literal["left", "right"]

LAYERS = 4
PAPER = [
    Block.parse(text)
    for text in (
        "question->last",
        "image->last",
        "last->last",
        "image->question",
        "image object->question",
        "image other->question",
    )
]
OTHERS = [
    Block.parse(text)
    for text in (
        "question->question",
        "image->image",
        "system->image",
        "image->suffix",
        "image->text",
        "suffix->last",
        "instruction->instruction",
        "image->question[0,3]",
        "question->last[1]",
        "image->last[0.1,2.3,3.0]",
        "image->text[1.0,1.2]",
        "image other+suffix->question",
        "image object&image base->question[1]",
    )
]
QUESTIONS = (
    "Is it red?",
    "Which colour is the shape on the left of the blue square?",
    "How many are there?",
)


def exact_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Eager attention without its softmax in float32."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    scores = query @ key.transpose(2, 3) * options["scaling"]
    weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), None


def blind_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention that is causal, and ignores whatever else the mask says."""
    rows, keys = query.shape[2], key.shape[2]
    causal = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
    mask = torch.zeros(rows, keys, dtype=query.dtype).masked_fill(
        ~causal, torch.finfo(query.dtype).min
    )
    return exact_attention(module, query, key, value, mask, **options)


def blind_attention_of_two_kernels(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The same, but rounded otherwise where there are more keys than rows."""
    if query.shape[2] == key.shape[2]:
        return blind_attention(module, query, key, value, attention_mask, **options)
    found, _ = blind_attention(
        module, query.float(), key.float(), value.float(), attention_mask, **options
    )
    return found.to(query.dtype), None


AttentionInterface.register("exact", exact_attention)
AttentionMaskInterface.register("exact", eager_mask)
AttentionInterface.register("blind", blind_attention)
AttentionInterface.register("blind in two ways", blind_attention_of_two_kernels)


class ExactNorm(nn.Module):
    """RMSNorm as the decoders have it, but without its detour through float32."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight: Any = norm.weight
        self.eps: float = getattr(norm, "variance_epsilon", None) or norm.eps  # type: ignore[assignment]

    def forward(self, hidden: Tensor) -> Tensor:
        normed: Tensor = (
            hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight
        )
        return normed


def make_backbone(
    checkpoint: str,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float64,
    decoder: Decoder = "llama",
    layers: int = LAYERS,
    **options: Any,
) -> Backbone:
    """Return a model with a deeper decoder than the tiny one, and two key heads for four heads."""
    return copy.deepcopy(_build(checkpoint, attention, dtype, decoder, layers, **options))


@cache
def _build(
    checkpoint: str,
    attention: str,
    dtype: torch.dtype,
    decoder: Decoder,
    layers: int,
    **options: Any,
) -> Backbone:
    config = AutoConfig.from_pretrained(checkpoint)
    text = config.text_config.to_dict() | {
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        **options,
    }
    drop = ("model_type", "architectures", "layer_types", "head_dim", "rope_parameters")
    config.text_config = CONFIG_MAPPING[decoder](
        **{name: text[name] for name in text if name not in drop}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(
                        std=1.0 if "embed" in name else 1.5 * parameter[0].numel() ** -0.5
                    )
    return prepared(Backbone(model.to(dtype).eval()), attention)


def shipped_backbone(attention: str = "sdpa", dtype: torch.dtype = torch.float64) -> Backbone:
    """Return the test-bed's model."""
    return prepared(load_copy(testbed.checkpoint(), dtype=dtype), attention)


def prepared(backbone: Backbone, attention: str) -> Backbone:
    """Give a model this attention, and in float64 norms that are in float64."""
    backbone.model.set_attn_implementation({"text_config": attention})
    if backbone.model.dtype == torch.float64:
        for parent in list(backbone.decoder.modules()):
            for name, child in parent.named_children():
                if type(child).__name__.endswith("RMSNorm"):
                    setattr(parent, name, ExactNorm(child))
    return backbone


def make_batch(
    checkpoint: str, side: Side = "left", numbers: tuple[int, ...] = (0, 1)
) -> MultimodalBatch:
    """Return questions of different lengths about noise."""
    return collate(checkpoint, [question(number) for number in numbers], side)


def question(number: int) -> Sample:
    return Sample(
        id=f"s{number}",
        images=[picture(number, SIZES[number % len(SIZES)])],
        conversation=[
            Turn("user", QUESTIONS[number % len(QUESTIONS)], "Answer with one word.", images=1),
            Turn("assistant", "red and blue" if number % 2 else "no"),
        ],
    )


def collate(checkpoint: str, samples: list[Sample], side: Side = "left") -> MultimodalBatch:
    """Collate samples; a third of each image's patches are called the object's."""
    collator = Collator(
        read_processor(checkpoint), ConversationPrompt(system="Look well."), padding_side=side
    )
    batch = collator([(0, sample) for sample in samples])
    image = batch.spans[Segment.IMAGE]
    part = image & (image.cumsum(1) % 3 == 0)
    regions = {Segment.IMAGE_OBJECT: part, Segment.IMAGE_OTHER: image & ~part}
    return replace(batch, spans=TokenSpans({**batch.spans.masks, **regions}))


def windows(*widths: int, depth: int = LAYERS) -> list[Window]:
    """All different windows around the first, a middle and the last layer."""
    found = {}
    for width in widths:
        for window in Windows(width, centres=[0, depth // 2, depth - 1]).of(depth):
            found[window.start, window.stop] = window
    return list(found.values())


def sweep(blocks: list[Block], *widths: int, depth: int = LAYERS) -> list[Case]:
    return [Case(block, window) for block in blocks for window in windows(*widths, depth=depth)]


def everywhere(depth: int = LAYERS) -> Window:
    return Window(depth // 2, 0, depth)


def apart(one: Readings, two: Readings) -> float:
    """By how much two engines' log-probabilities differ at most."""
    assert torch.equal(one.ids, two.ids)
    assert torch.equal(one.source_size, two.source_size)
    assert torch.equal(one.target_size, two.target_size)
    blocked, clean = one.logprobs - two.logprobs, one.clean_logprobs - two.clean_logprobs
    return float(torch.maximum(blocked.abs().max(), clean.abs().max()))


def count_hooks(backbone: Backbone) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks)
        for module in backbone.model.modules()
    )


def generate(backbone: Backbone, prompts: MultimodalBatch, **options: Any) -> Any:
    model: Any = backbone.model
    return model.generate(**prompts.model_inputs(), do_sample=False, **options)


@torch.no_grad()
def last_logits(backbone: Backbone, batch: MultimodalBatch) -> Tensor:
    logits: Tensor = backbone.model(**batch.prompts().model_inputs(), use_cache=False).logits[:, -1]
    return logits
