"""The one view of a Hugging Face MLLM that other packages get: its tower, projector and LLM."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mllm.batches import Image
from lightning_mllm.errors import CheckpointError
from lightning_mllm.families import family_of, finish_logits
from lightning_mllm.models.loading import AttentionImplementation, load_model
from lightning_mllm.models.placement import Placement, read_parameter
from lightning_mllm.models.reach import find_reached
from lightning_mllm.models.vision import EncodedImage, VisionPath
from lightning_mllm.store.fingerprint import fingerprint_tensors


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
        dtype: torch.dtype = torch.float32,
        attention: AttentionImplementation = "sdpa",
        revision: str | None = None,
        trust_remote_code: bool = False,
        placement: Placement | None = None,
    ) -> Backbone:
        """Load a checkpoint from the hub or a folder; the model comes in eval mode.

        Args:
            checkpoint: Hub id or folder.
            dtype: Dtype of all weights.
            attention: Attention implementation of transformers.
            revision: Branch, tag or commit on the hub.
            trust_remote_code: Whether code that comes with the checkpoint may run.
            placement: On which devices it lies; None for a model in the CPU's memory, which may be
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
            placement=placement,
        )
        return cls(model)

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
            (name, each.float()) for name, each in own if each.device.type != "meta"
        )

    def encode_images(self, images: Sequence[Image]) -> list[EncodedImage]:
        """Return what the LLM gets for each image. Tower and projector run on all images at once.

        Args:
            images: As in `MultimodalBatch`, not empty; its `image_counts` say whose each image is.
        """
        return self.vision_path.encode(images)

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
    """Hash each parameter's name, shape and first values, whatever the loading dtype."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(_head(read_parameter(model, name, parameter)).numpy().tobytes())
    return digest.hexdigest()[:16]


def _head(parameter: Tensor) -> Tensor:
    return parameter.detach().flatten()[:16].to("cpu", torch.bfloat16).view(torch.int16)
