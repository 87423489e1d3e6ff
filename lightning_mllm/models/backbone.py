"""Where tower, projector, decoder and head are in a Hugging Face MLLM: the only view of it that the rest gets.

A further family is one entry in `FAMILIES`.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PretrainedConfig, PreTrainedModel

from lightning_mllm.checkpoint_files import check_available, check_config, find_damage, parts_of, reason
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.evaluation.decoding import check_ends, describe_decoding
from lightning_mllm.models.vision import Stage, VisionPath
from lightning_mllm.store.fingerprint import fingerprint_tensors

AttentionImplementation = Literal["sdpa", "eager", "flash_attention_2"]
DType = Literal["auto", "float32", "bfloat16", "float16"]

_LOG = logging.getLogger(__name__)
_BUILT_IN = ("sdpa", "eager")
_OF_A_LAYER = re.compile(r"\.layers\.\d+\..*(weight|bias)$")


class Part(StrEnum):
    """The parts of an MLLM that a freeze policy can treat differently."""

    VISION = "vision"
    PROJECTOR = "projector"
    LLM = "llm"
    VISION_LORA = "vision lora"
    LLM_LORA = "llm lora"


@dataclass(frozen=True)
class Family:
    """Where the parts of one Hugging Face model type are, as prefixes of its live parameter names.

    Whatever is neither vision nor projector is the LLM. LLaVA-NeXT's `image_newline` counts as projector: it is a
    vector which the connector, not the LLM, puts between rows of visual tokens. That it packs several views of an image
    into rows is `packs_views`.
    """

    vision: tuple[str, ...] = ("model.vision_tower.",)
    projector: tuple[str, ...] = ("model.multi_modal_projector.",)
    packs_views: bool = False


FAMILIES = {
    "llava": Family(),
    "llava_next": Family(projector=("model.multi_modal_projector.", "model.image_newline"), packs_views=True),
}


class Backbone:
    """A loaded MLLM and its parts.

    Attributes:
        model: The Hugging Face model, e.g. `LlavaForConditionalGeneration`.
        family: Its entry of `FAMILIES`.
        fingerprint: Identifies the weights as loaded, whatever dtype they were loaded in; empty for a model without
            data (on the meta device).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.family = family_of(model.config)
        self.fingerprint = "" if model.device.type == "meta" else fingerprint(model)
        self._base_projector = self._hash_projector()

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str,
        *,
        dtype: torch.dtype = torch.float32,
        attention: AttentionImplementation = "sdpa",
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> Backbone:
        """Load a checkpoint from the hub or a folder; the model comes in eval mode.

        Raises:
            CheckpointError: There is no such checkpoint, or it is not an MLLM of a known family.
        """
        config = load_config(checkpoint, revision=revision, trust_remote_code=trust_remote_code)
        _check_generation_config(checkpoint, revision)
        try:
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                checkpoint,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                revision=revision,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # we name them ourselves
                output_loading_info=True,
            )
        except ImportError as error:
            needing = f"Checkpoint {checkpoint!r}" if attention in _BUILT_IN else f"attention={attention!r}"
            raise ConfigError(
                f"{needing} needs a package that is not installed ({_first_line(error)}). Install it, or use "
                f"{'another checkpoint' if attention in _BUILT_IN else 'attention=sdpa'}."
            ) from error
        except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise CheckpointError(
                f"The weights of checkpoint {checkpoint!r} can't be loaded: {_first_line(error).rstrip('.')}. Expected "
                "safetensors files beside config.json; re-download or re-export the checkpoint."
            ) from error
        model, info = loaded
        if lacking := sorted(info["missing_keys"]) + [str(key) for key in info["mismatched_keys"]]:
            raise CheckpointError(
                f"Checkpoint {checkpoint!r} lacks {len(lacking)} weights of a {model.config.model_type} model, or has "
                f"them in another shape; the first is {lacking[0]}. They would be random. Use a complete checkpoint."
            )
        if beyond := sorted(key for key in info["unexpected_keys"] if _OF_A_LAYER.search(key)):
            raise CheckpointError(
                f"Checkpoint {checkpoint!r} has {len(beyond)} weights of layers that its config.json does not know, "
                f"the first is {beyond[0]}: another model would be used without them. Correct num_hidden_layers."
            )
        check_ends(model.generation_config, model.config.get_text_config().vocab_size, checkpoint)
        if decoding := describe_decoding(model.generation_config):
            _LOG.warning(decoding)
        return cls(model)

    @property
    def vision_tower(self) -> nn.Module:
        """The vision encoder."""
        return self.model.get_submodule(self.family.vision[0].rstrip("."))

    @property
    def projector(self) -> nn.Module:
        """The network between vision encoder and LLM."""
        return self.model.get_submodule(self.family.projector[0].rstrip("."))

    @property
    def has_base_projector(self) -> bool:
        """Whether the projection is still, value for value, that of the loaded model."""
        return self._hash_projector() == self._base_projector

    def _hash_projector(self) -> str:
        own = self.parameters(Part.PROJECTOR)
        return fingerprint_tensors((name, each.float()) for name, each in own if each.device.type != "meta")

    @property
    def vision_path(self) -> VisionPath:
        """Tower and projector, step by step."""
        return VisionPath(self.model, self.vision_tower, self.projector, self.family.packs_views)

    def encode_images(self, vision: Mapping[str, Tensor], stage: Stage) -> list[Tensor]:
        """Return each image's features; tower and, for "post", projector run on all at once, the LLM does not.

        Args:
            vision: As in `MultimodalBatch`, not empty; its `image_counts` say which images are whose.
            stage: "pre": (views, patches, width), what enters the projector. "post": (tokens, width), bit for bit
                what the model feeds its LLM at the image's positions; LLaVA-NeXT's packed, with `image_newline`.
        """
        return self.vision_path.encode(vision, stage)

    @property
    def decoder(self) -> nn.Module:
        """The LLM without its head: `.layers`, `.norm`, `.embed_tokens`."""
        decoder: nn.Module = self.model.get_decoder()
        return decoder

    @property
    def lm_head(self) -> nn.Module:
        """The output embedding, width -> vocabulary."""
        head: nn.Module = self.model.get_output_embeddings()
        return head

    def part_of(self, name: str) -> Part:
        """Return the part to which a parameter, named as in `model.named_parameters()`, belongs."""
        adapter = ".lora_" in name
        if name.startswith(self.family.vision):
            return Part.VISION_LORA if adapter else Part.VISION
        if name.startswith(self.family.projector):
            return Part.PROJECTOR
        return Part.LLM_LORA if adapter else Part.LLM

    def parameters(self, *parts: Part) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and parameter of the given parts, or of all."""
        for name, parameter in self.model.named_parameters():
            if not parts or self.part_of(name) in parts:
                yield name, parameter

    def idle_parameters(self) -> frozenset[str]:
        """Names of the tower's parameters that lie behind the tapped layer and so never get a gradient.

        LLaVA taps `hidden_states[vision_feature_layer]`, usually the output of the last layer but one: the last
        layer and the final norm have no influence on anything.
        """
        tower, prefix = self.vision_tower, self.family.vision[0]
        depth: int = self.model.config.vision_config.num_hidden_layers
        tapped = self.model.config.vision_feature_layer
        taps = [tapped] if isinstance(tapped, int) else list(tapped)
        used = max(tap if tap >= 0 else depth + 1 + tap for tap in taps)
        idle_prefixes: list[str] = []
        for name, module in tower.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == depth:
                idle_prefixes += [f"{prefix}{name}.{index}." for index in range(used, depth)]
            elif name.rpartition(".")[2] in ("post_layernorm", "head"):
                idle_prefixes.append(f"{prefix}{name}.")
        return frozenset(name for name, _ in self.parameters(Part.VISION) if name.startswith(tuple(idle_prefixes)))


def family_of(config: PretrainedConfig) -> Family:
    """Return the family of a model config.

    Raises:
        CheckpointError: The model type is not one of `FAMILIES`.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        kind = "a text-only model" if not hasattr(config, "vision_config") else "a model of another family"
        raise CheckpointError(
            f"The checkpoint is {kind} (model_type {config.model_type!r}). Expected one of: {', '.join(FAMILIES)}. "
            "Choose such a checkpoint, or add the family to FAMILIES in lightning_mllm/models/backbone.py."
        )
    return family


def load_config(checkpoint: str, *, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    """Load and check the config of a checkpoint, which is cheap: no weights are read.

    Raises:
        CheckpointError: There is no such checkpoint, or it is not an MLLM of a known family.
    """
    folder = Path(checkpoint)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"The folder {checkpoint!r} holds no config.json. Expected a checkpoint in the Hugging Face format: "
            "config.json, *.safetensors, tokenizer and processor files."
        )
    check_available(checkpoint, revision)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            checkpoint, revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # transformers raises whatever a damaged config provokes
        raise CheckpointError(
            f"Checkpoint {checkpoint!r} can't be opened: {reason(checkpoint, revision, error)}. Check the spelling and "
            "the revision; for a gated model accept its licence and set HF_TOKEN; for a small model to try things out, "
            f"run `lightning tiny {checkpoint}`."
        ) from error
    family_of(config)
    check_config(config, checkpoint)
    for part in parts_of(config):  # what a forward returns is for its caller to say
        part.return_dict, part.output_attentions, part.output_hidden_states = True, False, False
    return config


def _check_generation_config(checkpoint: str, revision: str | None) -> None:
    """Refuse a broken one; of one that is no JSON transformers says nothing."""
    damage = find_damage(checkpoint, revision)
    try:
        GenerationConfig.from_pretrained(checkpoint, revision=revision or "main")
    except OSError:
        pass  # there is none
    except Exception as error:  # whatever its values provoke
        damage = damage or f"its generation_config.json is refused by transformers ({_first_line(error)})"
    if damage:
        raise CheckpointError(f"Checkpoint {checkpoint!r} is damaged: {damage}. Correct it, or fetch it again.")


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """Hash every parameter's name, shape and first values, rounded to bfloat16: the loading dtype is no matter."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(_head(parameter).numpy().tobytes())
    return digest.hexdigest()[:16]


def _head(parameter: Tensor) -> Tensor:
    return parameter.detach().flatten()[:16].to("cpu", torch.bfloat16).view(torch.int16)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
