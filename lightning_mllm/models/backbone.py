"""The one view of a Hugging Face MLLM that other packages get: its tower, projector and LLM."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mllm.batches import Image
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.families import family_of, finish_logits
from lightning_mllm.models.holding import Holding
from lightning_mllm.models.loading import AttentionImplementation, load_model
from lightning_mllm.models.placement import read_parameter
from lightning_mllm.models.quantization import stored_weights, weight_head
from lightning_mllm.models.reach import find_reached
from lightning_mllm.models.shard_values import first_values, whole_values
from lightning_mllm.models.vision import EncodedImage, VisionPath
from lightning_mllm.store.fingerprint import fingerprint_tensors

_FINAL_NORMS = ("norm", "final_layer_norm", "final_layernorm")  # of an LLM, by its class


class Part(StrEnum):
    """The parts of an MLLM that a freeze policy can treat differently."""

    VISION = "vision"
    PROJECTOR = "projector"
    LLM = "llm"
    VISION_LORA = "vision lora"
    LLM_LORA = "llm lora"


class Backbone:
    """A loaded MLLM and its parts.

    Attributes:
        model: The Hugging Face model, e.g. `LlavaForConditionalGeneration`.
        family: Where its parts are, and what else is known of its type.
        fingerprint: Identifies the weights as loaded, whatever dtype they were loaded in; empty for
            a model without data (on the meta device).

    Raises:
        CheckpointError: The model is not of a known family.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.family = family_of(model.config)
        modules = dict(model.named_modules())
        for name in (self.family.tower_name, self.family.projector_name):
            if name not in modules:
                raise CheckpointError(
                    f"A {type(model).__name__} has no module {name!r}, which its family names. "
                    "Correct its `register_family`: see docs/add_a_family.md."
                )
        self.fingerprint = "" if model.device.type == "meta" else fingerprint_backbone(model)
        self._base_projector = self._hash_projector()

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str,
        *,
        dtype: torch.dtype | Literal["auto"] = torch.float32,
        attention: AttentionImplementation = "sdpa",
        revision: str | None = None,
        trust_remote_code: bool = False,
        holding: Holding = Holding(),
    ) -> Backbone:
        """Load a checkpoint from the hub or a folder; the model comes in eval mode.

        Args:
            checkpoint: Hub id or folder.
            dtype: Dtype of all weights that are not quantised; `auto` is that of the checkpoint.
            attention: Attention implementation of transformers.
            revision: Branch, tag or commit on the hub.
            trust_remote_code: Whether code that comes with the checkpoint may run.
            holding: How it is held; by default whole, in the CPU's memory, from where it may be
                moved.

        Raises:
            CheckpointError: There is no such checkpoint, it is damaged, or it is not an MLLM of a
                known family.
            ConfigError: The model has no such attention implementation, or a package is not
                installed that it or the checkpoint needs.
        """
        model = load_model(
            checkpoint,
            dtype=dtype,
            attention=attention,
            revision=revision,
            trust_remote_code=trust_remote_code,
            holding=holding,
        )
        return cls(model)

    @property
    def quantized(self) -> str | None:
        """How weights are quantised: `nf4`, `fp4` or `int8`; None where all are numbers."""
        kinds = {each.kind for each in stored_weights(self.model).values()} - {""}
        return min(kinds, default=None)

    @property
    def vision_path(self) -> VisionPath:
        """Tower and projector, step by step."""
        return VisionPath(self.model, self.family)

    @property
    def vision_tower(self) -> nn.Module:
        """The vision encoder."""
        return self.vision_path.tower

    @property
    def projector(self) -> nn.Module:
        """The network between vision encoder and LLM."""
        return self.vision_path.projector

    @property
    def has_base_projector(self) -> bool:
        """Whether the projection is still, value for value, that of the loaded model."""
        return self._hash_projector() == self._base_projector

    def _hash_projector(self) -> str:
        own = self.parameters(Part.PROJECTOR)
        return fingerprint_tensors(
            (name, whole_values(each).float()) for name, each in own if each.device.type != "meta"
        )

    def encode_images(self, images: Sequence[Image]) -> list[EncodedImage]:
        """Return what the LLM gets for each image. Tower and projector run on all images at once.

        Args:
            images: As in `MultimodalBatch`, not empty; its `image_counts` say whose each image is.
        """
        return self.vision_path.encode(images)

    @property
    def decoder(self) -> nn.Module:
        """The LLM without its head; its layers are `.layers`."""
        decoder: nn.Module = self.model.get_decoder()
        return decoder

    @property
    def final_norm(self) -> nn.Module:
        """What the residual stream passes between the LLM's last layer and its head.

        Raises:
            ConfigError: It has another name in this LLM than in those that are known.
        """
        for name in _FINAL_NORMS:
            if (norm := getattr(self.decoder, name, None)) is not None:
                found: nn.Module = norm
                return found
        raise ConfigError(
            f"The LLM is a {type(self.decoder).__name__}, whose norm after the last layer has none "
            f"of the names {', '.join(_FINAL_NORMS)}, so states of its layers can't be read. Use a "
            "checkpoint with another LLM."
        )

    @property
    def lm_head(self) -> nn.Module:
        """The output embedding, width -> vocabulary."""
        head: nn.Module = self.model.get_output_embeddings()
        return head

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., width), after the final norm -> (..., vocabulary), as the model's own forward."""
        return finish_logits(self.model.config, self.lm_head(hidden))

    @property
    def trains_vision(self) -> bool:
        """Whether anything before the projector is trained."""
        parts = self.parameters(Part.VISION, Part.VISION_LORA)
        return any(parameter.requires_grad for _, parameter in parts)

    def part_of(self, name: str) -> Part:
        """Return the part of a parameter, named as in `model.named_parameters()`."""
        is_adapter = ".lora_" in name
        if name.startswith(self.family.projector):  # it may lie inside the tower
            return Part.PROJECTOR
        if name.startswith(self.family.vision):
            return Part.VISION_LORA if is_adapter else Part.VISION
        return Part.LLM_LORA if is_adapter else Part.LLM

    def parameters(self, *parts: Part) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and parameter of the given parts; of all parts if none is given."""
        for name, parameter in self.model.named_parameters():
            if not parts or self.part_of(name) in parts:
                yield name, parameter

    def idle_parameters(self) -> frozenset[str]:
        """Return the names of the tower's parameters that no gradient ever reaches.

        LLaVA taps `hidden_states[vision_feature_layer]`, usually the output of the last layer but
        one: the layers after it and the final norm have no influence on anything. Nor has the
        pooling head of a SigLIP, or the mask token of a DINOv2.
        """
        reached = find_reached(self.vision_path)
        prefix = f"{self.family.tower_name}."
        names = (name for name, _ in self.parameters(Part.VISION))
        return frozenset(name for name in names if name.removeprefix(prefix) not in reached)


@torch.no_grad()
def fingerprint_backbone(model: PreTrainedModel) -> str:
    """Hash each parameter's name, shape and first values, whatever the loading dtype.

    Of a sharded model this is the hash of the whole one, for which all processes call it. Of a
    weight that is held quantised the shape and values count that the checkpoint has for it.
    """
    digest, stored = hashlib.sha256(), stored_weights(model)
    named = dict(sorted(model.named_parameters()))
    values = [read_parameter(model, name, parameter) for name, parameter in named.items()]
    for (name, parameter), head in zip(named.items(), first_values(values, 16), strict=True):
        own = stored.get(name)
        shape = parameter.shape if own is None else own.shape
        digest.update(f"{name}{tuple(shape)}".encode())
        digest.update((weight_head(head) if own is None else own.head).numpy().tobytes())
    return digest.hexdigest()[:16]
