"""Opens a Hugging Face checkpoint; refuses one that is damaged, incomplete or of another family."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from lightning_mllm.checkpoint_files import (
    check_checkpoint_available,
    check_checkpoint_config,
    checkpoint_config_parts,
    find_checkpoint_damage,
    why_checkpoint_fails,
)
from lightning_mllm.errors import CheckpointError, ConfigError, UserError
from lightning_mllm.evaluation.decoding import check_decoding_ends, describe_decoding
from lightning_mllm.families import family_of
from lightning_mllm.models.holding import Holding
from lightning_mllm.models.placement import placing_quietly, plan_placement, return_to_caller
from lightning_mllm.models.quantization import (
    check_quantization_available,
    dequantize_model,
    kind_of_quantized_checkpoint,
    quantization_config,
    settle_quantized_layers,
)
from lightning_mllm.models.sharding import sharded_loading

AttentionImplementation = Literal["sdpa", "eager", "flash_attention_2"]

_BUILT_IN = ("sdpa", "eager")
_WEIGHT_OF_A_LAYER = re.compile(r"\.layers\.\d+\..*(weight|bias)$")
_OTHER_ATTENTION = re.compile("does not support .*attention", re.IGNORECASE)

logger = logging.getLogger(__name__)


def load_model(
    checkpoint: str,
    *,
    dtype: torch.dtype | Literal["auto"],
    attention: AttentionImplementation,
    revision: str | None,
    trust_remote_code: bool,
    holding: Holding = Holding(),
) -> PreTrainedModel:
    """Load config and weights of an MLLM, in eval mode; of a sharded one, this process's shards.

    Args:
        checkpoint: Hub id or folder.
        dtype: Dtype of all weights that are not quantised; `auto` is that of the checkpoint, which
            on the CPU is not even read before it is used.
        attention: Attention implementation of transformers.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether code that comes with the checkpoint may run.
        holding: How it is held.

    Raises:
        CheckpointError: There is no such checkpoint, it is damaged, or not an MLLM of a known
            family.
        ConfigError: The model has no such attention implementation, or a package is missing that it
            or the checkpoint needs; or a checkpoint is quantised that is to be quantised.
    """
    config = load_config(checkpoint, revision=revision, trust_remote_code=trust_remote_code)
    _check_generation_config(checkpoint, revision)
    options = _find_holding_options(checkpoint, config, dtype, holding)
    try:
        with sharded_loading(config, holding.sharding) as sharded, placing_quietly():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                checkpoint,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                revision=revision,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # `_check_complete` names them
                output_loading_info=True,
                **options,
                **sharded,
            )
    except UserError:
        raise
    except ImportError as error:
        _refuse_missing_package(checkpoint, attention, error)
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        _refuse_weights(checkpoint, attention, error)
    model: PreTrainedModel = loaded[0]
    _check_complete(checkpoint, model, loaded[1])
    _settle(model, holding, was_quantised=kind_of_quantized_checkpoint(config) is not None)
    vocabulary = model.config.get_text_config().vocab_size
    check_decoding_ends(model.generation_config, vocabulary, checkpoint)
    if decoding := describe_decoding(model.generation_config):
        logger.warning(decoding)
    return model


def _find_holding_options(
    checkpoint: str,
    config: PretrainedConfig,
    dtype: torch.dtype | Literal["auto"],
    holding: Holding,
) -> dict[str, Any]:
    """Return the keywords of `from_pretrained` that put weights elsewhere or quantise them."""
    if (kind := kind_of_quantized_checkpoint(config)) is not None:
        check_quantization_available(f"Checkpoint {checkpoint!r}, which is quantised ({kind}),")
        if holding.placement is not None:
            raise ConfigError(
                f"Checkpoint {checkpoint!r} is quantised ({kind}), with which model.device_map was "
                "never tried. Leave model.device_map out, or use the checkpoint that it was made "
                "from."
            )
    if holding.placement is not None and isinstance(dtype, torch.dtype):
        return {"device_map": plan_placement(config, holding.placement, dtype)}
    options: dict[str, Any] = {}
    if kind is not None or holding.quantization is not None:
        options["device_map"] = {"": str(holding.device)}
    if holding.quantization is not None and isinstance(dtype, torch.dtype):
        options["quantization_config"] = quantization_config(holding.quantization, dtype)
    return options


def _settle(model: PreTrainedModel, holding: Holding, *, was_quantised: bool) -> None:
    """Make of a model that was just read what the framework expects of it."""
    if holding.placement is not None:
        return_to_caller(model)
    if was_quantised or holding.quantization is not None:
        stored = None if holding.quantization is None else holding.quantization.stored
        settle_quantized_layers(model, model.dtype, stored)
    if was_quantised and holding.dequantize:
        dequantize_model(model)


def load_config(
    checkpoint: str, *, revision: str | None, trust_remote_code: bool
) -> PretrainedConfig:
    """Load and check the config of a checkpoint, which is cheap: no weights are read.

    Raises:
        CheckpointError: There is no such checkpoint, or it is not an MLLM of a known family.
    """
    folder = Path(checkpoint)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"The folder {checkpoint!r} holds no config.json. Expected a checkpoint in the Hugging "
            "Face format: config.json, *.safetensors, tokenizer and processor files."
        )
    check_checkpoint_available(checkpoint, revision)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            checkpoint, revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # transformers raises whatever a damaged config provokes
        raise CheckpointError(
            f"Checkpoint {checkpoint!r} can't be opened: "
            f"{why_checkpoint_fails(checkpoint, revision, error)}. Check the spelling and the "
            "revision; for a gated model accept its licence and set HF_TOKEN; for a small model to "
            f"try things out, run `lightning tiny {checkpoint}`."
        ) from error
    family_of(config)
    check_checkpoint_config(config, checkpoint)
    for part in checkpoint_config_parts(config):  # the caller of a forward decides what it returns
        part.return_dict, part.output_attentions, part.output_hidden_states = True, False, False
    return config


def _check_generation_config(checkpoint: str, revision: str | None) -> None:
    """Refuse a broken one; transformers itself ignores a file that is not JSON."""
    damage = find_checkpoint_damage(checkpoint, revision)
    try:
        GenerationConfig.from_pretrained(checkpoint, revision=revision or "main")
    except OSError:
        pass  # there is none
    except Exception as error:  # whatever its values provoke
        refused = f"its generation_config.json is refused by transformers ({_first_line(error)})"
        damage = damage or refused
    if damage:
        raise CheckpointError(
            f"Checkpoint {checkpoint!r} is damaged: {damage}. Correct it, or fetch it again."
        )


def _check_complete(checkpoint: str, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuse a checkpoint whose weights are not those of the model that its config describes."""
    missing = sorted(info["missing_keys"]) + [str(key) for key in info["mismatched_keys"]]
    if missing:
        raise CheckpointError(
            f"Checkpoint {checkpoint!r} lacks {len(missing)} weights of a "
            f"{model.config.model_type} model, or has them in another shape; the first is "
            f"{missing[0]}. They would be random. Use a complete checkpoint."
        )
    surplus = sorted(key for key in info["unexpected_keys"] if _WEIGHT_OF_A_LAYER.search(key))
    if surplus:
        raise CheckpointError(
            f"Checkpoint {checkpoint!r} has {len(surplus)} weights of layers that its config.json "
            f"does not know, the first is {surplus[0]}: another model would be used without them. "
            "Correct num_hidden_layers."
        )


def _refuse_weights(
    checkpoint: str, attention: AttentionImplementation, error: Exception
) -> NoReturn:
    first = _first_line(error)
    if attention != "eager" and _OTHER_ATTENTION.search(first):
        raise ConfigError(
            f"Checkpoint {checkpoint!r} holds a {first.partition(' ')[0]}, which does not support "
            f"attention={attention}. Use attention=eager."
        ) from error
    raise CheckpointError(
        f"The weights of checkpoint {checkpoint!r} can't be loaded: {first.rstrip('.')}. Expected "
        "safetensors files beside config.json; re-download or re-export the checkpoint."
    ) from error


def _refuse_missing_package(
    checkpoint: str, attention: AttentionImplementation, error: ImportError
) -> NoReturn:
    if attention in _BUILT_IN:
        needing, way_out = f"Checkpoint {checkpoint!r}", "another checkpoint"
    else:
        needing, way_out = f"attention={attention!r}", "attention=sdpa"
    raise ConfigError(
        f"{needing} needs a package that is not installed ({_first_line(error)}). Install it, or "
        f"use {way_out}."
    ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
