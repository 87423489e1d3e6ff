"""Opens a causal language model, if it computes what it would compute in a LLaVA."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from lightning_mllm.checkpoint_files import check_checkpoint_available, why_checkpoint_fails
from lightning_mllm.errors import CheckpointError
from lightning_mllm.models.assemble.chat import IMAGE_TOKEN

_EXAMPLES = "HuggingFaceTB/SmolLM2-135M-Instruct or Qwen/Qwen2.5-0.5B-Instruct"


@dataclass(frozen=True)
class LanguageModel:
    """A language model that has a token for images.

    Attributes:
        model: The causal language model itself.
        tokenizer: Tokenizer of the language model, with a chat template.
        image_token_id: Id of the token for images.
    """

    model: Any
    tokenizer: Any
    image_token_id: int


def open_language_model(llm: str) -> LanguageModel:
    """Open a language model and give it a token for images.

    Where its embedding has no row to spare, it gets one: the mean of all, so that the new token is
    no likelier than the average one.

    Args:
        llm: Hub id or folder of a causal language model that was tuned to chat.

    Raises:
        CheckpointError: There is no such checkpoint; it is not a language model; weights are
            missing; it has no chat template or a slow tokenizer; or what it computes can't be
            computed from embeddings of tokens, the layers and the output embedding alone.
    """
    check_checkpoint_available(llm, None)
    tokenizer = _open_tokenizer(llm)
    model = _open_model(llm)
    _check_computation(llm, model)
    image_token_id = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    if image_token_id >= model.config.vocab_size:
        _add_embedding(model, image_token_id + 1)
    return LanguageModel(model, tokenizer, image_token_id)


def _open_tokenizer(llm: str) -> Any:
    """Return the tokenizer, which reads `<image>` as one token."""
    try:
        own: Any = AutoTokenizer.from_pretrained(llm)
        tokenizer: Any = AutoTokenizer.from_pretrained(
            llm, extra_special_tokens={"image_token": IMAGE_TOKEN}
        )
    except Exception as error:  # whatever damaged files provoke
        raise CheckpointError(
            f"The tokenizer of {llm!r} can't be opened: {why_checkpoint_fails(llm, None, error)}. "
            f"Give the hub id or folder of a language model, e.g. {_EXAMPLES}."
        ) from error
    if not own.is_fast:
        raise CheckpointError(
            f"The tokenizer of {llm!r} ({type(own).__name__}) is a slow one, which does not say "
            "where in a text its tokens are. Save it as a fast one (tokenizer.json), or choose "
            "another language model."
        )
    if not isinstance(own.chat_template, str):
        raise CheckpointError(
            f"The tokenizer of {llm!r} has no chat template, so nothing says how a question is "
            f"put to it. Choose a variant that was tuned to chat, e.g. {_EXAMPLES}, or put a "
            "chat_template.jinja into a folder with its files."
        )
    return tokenizer


def _open_model(llm: str) -> Any:
    try:
        config: Any = AutoConfig.from_pretrained(llm)
        kinds = (type(config) in MODEL_FOR_CAUSAL_LM_MAPPING, type(config) in MODEL_MAPPING)
        if not all(kinds) or hasattr(config, "vision_config") or config.is_encoder_decoder:
            raise CheckpointError(
                f"{llm!r} (model_type {config.model_type!r}) is not a causal language model of "
                f"text alone. Choose one, e.g. {_EXAMPLES}."
            )
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            llm, config=config, dtype="auto", use_safetensors=True, output_loading_info=True
        )
        model, info = loaded
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        why = why_checkpoint_fails(llm, None, error)
        raise CheckpointError(f"The language model {llm!r} can't be opened: {why}.") from error
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{llm!r} lacks {len(missing)} weights of a {config.model_type}, the first is "
            f"{missing[0]}. They would be random. Use a complete checkpoint."
        )
    return model


@torch.no_grad()
def _check_computation(llm: str, model: Any) -> None:
    """Refuse what would be another model in a LLaVA, by what it makes of a few tokens.

    LLaVA gives the layers embeddings instead of tokens, and its head is the output embedding: no
    bias, no scale, no soft cap.
    """
    layers = model.base_model
    if "inputs_embeds" not in inspect.signature(layers.forward).parameters:
        raise CheckpointError(
            f"The layers of {llm!r} ({type(layers).__name__}) take tokens only, no "
            "`inputs_embeds`, so pictures can't reach them. Choose another language model."
        )
    tokens = torch.arange(8)[None] % model.config.vocab_size
    states = layers(tokens)[0]
    embedded = layers(inputs_embeds=model.get_input_embeddings()(tokens))[0]
    if not torch.equal(states, embedded):
        raise CheckpointError(
            f"The layers of {llm!r} ({type(layers).__name__}) compute something else of the "
            "embeddings of tokens than of the tokens, so they can't be part of a LLaVA. Choose "
            "another language model."
        )
    head = model.get_output_embeddings()
    if not torch.equal(model(tokens).logits, linear(states, head.weight)):
        raise CheckpointError(
            f"The logits of {llm!r} ({type(model).__name__}) are not just its last states times "
            "its output embedding (it has a bias, a scale or a soft cap), and LLaVA's are: its "
            "text would change. Choose another language model."
        )


@torch.no_grad()
def _add_embedding(model: Any, size: int) -> None:
    """Enlarge the vocabulary; each new row is the mean of all others."""
    known = model.config.vocab_size
    model.resize_token_embeddings(size, mean_resizing=False)
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        weights = embedding.weight
        weights[known:] = weights[:known].double().mean(dim=0).to(weights.dtype)
