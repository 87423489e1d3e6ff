"""What can be wrong with a checkpoint's files, in one sentence that names the file or key.

All of it is found out before any weights are read. Model and data open the same checkpoint, each
its own files, and either may be the first.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import huggingface_hub
import numpy as np
from huggingface_hub import constants
from huggingface_hub.utils._validators import validate_repo_id
from transformers import PretrainedConfig

from lightning_mllm.errors import CheckpointError
from lightning_mllm.network import is_reachable

logger = logging.getLogger(__name__)

_LONGEST = 300  # characters of a library's message: some list all models that they know
_JSON_FILES = (
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"),
    "model.safetensors.index.json",
)


def check_checkpoint_available(checkpoint: str, revision: str | None) -> None:
    """Refuse, within seconds, a checkpoint that is neither on this machine nor in reach.

    Where the hub can't be reached and the checkpoint is in the cache, this process asks the hub no
    more: the library would try again and again, for minutes, for each file that is not cached.

    Raises:
        CheckpointError: It is not a folder and not in the cache, and the hub can't be reached, or
            HF_HUB_OFFLINE says not to ask it.
    """
    if not _is_hub_id(checkpoint) or Path(checkpoint).is_dir():
        return
    if (obstacle := find_hub_obstacle()) is None:
        return
    why, way_out = obstacle
    if _find(checkpoint, revision, "config.json") is None:
        raise CheckpointError(
            f"Checkpoint {checkpoint!r} is not a folder on this machine, not in the cache of the "
            f"Hugging Face hub, and {why}. Check the spelling of a folder or hub id; to use a "
            f"model of the hub, fetch it where there is a network (`hf download {checkpoint}`), or "
            f"{way_out}."
        )
    ask_hub_no_more(why, checkpoint)


def find_hub_obstacle() -> tuple[str, str] | None:
    """Return why the hub can't be asked, and what helps; None if it can be asked."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE says not to ask the hub", "unset HF_HUB_OFFLINE"
    if is_reachable(constants.ENDPOINT):
        return None
    return f"{constants.ENDPOINT} can't be reached", "check the network and its proxy"


def ask_hub_no_more(why: str, name: str) -> None:
    """Let this process and those that it starts read the cache alone, and say so once.

    Args:
        why: Why the hub can't be asked.
        name: The hub id that is read from the cache.
    """
    if not constants.HF_HUB_OFFLINE:
        logger.warning("%s: %s is read from the cache.", why, name)
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the processes that this one starts
        constants.HF_HUB_OFFLINE = True


def why_checkpoint_fails(checkpoint: str, revision: str | None, error: Exception) -> str:
    """Return why a checkpoint can't be opened, without a full stop.

    The reason is its first damaged file; if there is none, the message of the library.

    Args:
        checkpoint: Hub id or folder.
        revision: Branch, tag or commit of a hub id.
        error: The error that the library raised.
    """
    if damage := find_checkpoint_damage(checkpoint, revision):
        return damage
    if not _is_hub_id(checkpoint) and not Path(checkpoint).exists():
        return "there is no such folder"
    said = shorten(" ".join(str(error).split()) or type(error).__name__, _LONGEST).rstrip(".: ")
    if isinstance(error, OSError | ValueError | ImportError):
        return said
    return f"{type(error).__name__}: {said}"


def _is_hub_id(checkpoint: str) -> bool:
    """Return whether a name may be one of the hub; it may be that of a folder as well."""
    try:
        validate_repo_id(checkpoint)
    except ValueError:
        return False
    return True


def find_checkpoint_damage(checkpoint: str, revision: str | None) -> str | None:
    """Return what is wrong with the first damaged JSON file, without a full stop."""
    for name in _JSON_FILES:
        if (path := _find(checkpoint, revision, name)) is None:
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # neither JSON nor text
            return f"its {name} is not valid JSON ({error})"
        if not isinstance(content, dict):
            return f"its {name} holds a {type(content).__name__} instead of an object"
    return None


def check_checkpoint_config(config: PretrainedConfig, checkpoint: str) -> None:
    """Refuse an MLLM's config that can't be right, or is not supported.

    Raises:
        CheckpointError: The weights are quantised by another library than bitsandbytes, a picture
            has no patch, or the config names a layer or a token that does not exist.
    """
    for part in checkpoint_config_parts(config):
        if (quantised := getattr(part, "quantization_config", None)) is None:
            continue
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        if method == "bitsandbytes" and part is config:
            continue
        raise CheckpointError(
            f"Checkpoint {checkpoint!r} is quantised (quant_method {str(method)!r} in its "
            "config.json), which can be neither trained nor measured here: of quantised weights "
            "only those that bitsandbytes wrote are known. Use the checkpoint that it was made "
            "from, with model.quantize nf4 or int8 if memory is short."
        )
    if hasattr(config, "vision_feature_layer"):
        _check_tower(config, checkpoint)
    _check_image_token(config, checkpoint)


def checkpoint_config_parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    """Return a config and the configs of the tower and the LLM in it."""
    parts = (getattr(config, name, None) for name in config.sub_configs)
    return [config, *(part for part in parts if part is not None)]


def check_checkpoint_tokens(processor: Any, config: PretrainedConfig, checkpoint: str) -> None:
    """Refuse a tokenizer that has more tokens than the model.

    Raises:
        CheckpointError: A token's id is too high for the model's embedding.
    """
    known = processor.tokenizer.get_vocab()
    last = max(known, key=lambda token: int(known[token]))
    embedded = config.get_text_config().vocab_size
    if known[last] >= embedded:
        raise CheckpointError(
            f"The tokenizer of {checkpoint!r} has token {last!r} with id {known[last]}, but the "
            f"model embeds only {embedded} tokens (vocab_size in config.json). Use the tokenizer "
            "that the checkpoint was trained with, or enlarge the model's embedding "
            "(resize_token_embeddings of transformers) and save it."
        )


def check_features(
    ids: Sequence[int], processor: Any, config: PretrainedConfig, checkpoint: str
) -> None:
    """Refuse a processor that leaves no place for features where a picture goes.

    Args:
        ids: What the processor made of a text that is nothing but a picture.
        processor: The checkpoint's processor.
        config: The config of its model.
        checkpoint: Hub id or folder of the checkpoint.

    Raises:
        CheckpointError: The model's image token is not among the ids.
    """
    expected = config.image_token_id
    if expected in ids:
        return
    found = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    raise CheckpointError(
        f"The processor of {checkpoint!r} puts {processor.image_token!r} where a picture goes, "
        f"with id {found}, but its model expects the id {expected} there (image_token_id or "
        "image_token_index in config.json), which nothing that the processor writes has. Correct "
        "one of them; they must be the same token."
    )


def _check_tower(config: PretrainedConfig, checkpoint: str) -> None:
    tower: Any = config.vision_config
    side: Any = getattr(tower, "image_size", None)
    patch: Any = getattr(tower, "patch_size", None)
    counted = side is not None and patch is not None  # each a number, or height and width
    if counted and (np.min(patch) < 1 or np.min(side) < np.max(patch)):
        raise CheckpointError(
            f"The config of checkpoint {checkpoint!r} has image_size {side} and patch_size "
            f"{patch}; a picture must have at least one patch. Correct its config.json."
        )
    depth, tapped = tower.num_hidden_layers, config.vision_feature_layer
    taps = tapped if isinstance(tapped, list | tuple) else [tapped]
    if not taps or any(type(tap) is not int or not -depth - 1 <= tap <= depth for tap in taps):
        raise CheckpointError(
            f"vision_feature_layer is {tapped!r} in the config of checkpoint {checkpoint!r}, but "
            f"its vision tower has {depth} layers: expected {-depth - 1} to {depth}, or a list of "
            "such numbers. Correct its config.json."
        )


def _check_image_token(config: PretrainedConfig, checkpoint: str) -> None:
    token, embedded = getattr(config, "image_token_id", None), config.get_text_config().vocab_size
    if type(token) is not int or not 0 <= token < embedded:
        name = config.attribute_map.get("image_token_id", "image_token_id")
        raise CheckpointError(
            f"{name} is {token!r} in the config of checkpoint {checkpoint!r}; expected "
            f"the id of the image token, from 0 to {embedded - 1}. Correct its config.json."
        )


def _find(checkpoint: str, revision: str | None, name: str) -> Path | None:
    """Return a file of a folder, or of a hub id's cached files."""
    if Path(checkpoint).is_dir():
        path = Path(checkpoint, name)
        return path if path.is_file() else None
    try:
        cached = huggingface_hub.try_to_load_from_cache(checkpoint, name, revision=revision)
    except ValueError:  # a path
        return None
    return Path(cached) if isinstance(cached, str) else None
