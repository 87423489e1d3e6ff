"""The model types that are supported, and where each has its vision tower and its projector.

A further family is one entry in `FAMILIES`.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from lightning_mllm.errors import CheckpointError


@dataclass(frozen=True)
class Family:
    """Where the parts of one Hugging Face model type are; what is in neither prefix is the LLM.

    Attributes:
        vision: Prefixes of the parameter names of the vision tower, as in
            `model.named_parameters()`; the first is the tower's module.
        projector: Prefixes of those of the projector; the first is the projector's module.
            LLaVA-NeXT's `image_newline` belongs to it: the connector, not the LLM, puts this vector
            between rows of visual tokens.
        packs_views: Whether the model packs several views of an image into rows of tokens
            (LLaVA-NeXT).
    """

    vision: tuple[str, ...] = ("model.vision_tower.",)
    projector: tuple[str, ...] = ("model.multi_modal_projector.",)
    packs_views: bool = False

    @property
    def tower_name(self) -> str:
        """Name of the vision tower's module."""
        return self.vision[0].rstrip(".")

    @property
    def projector_name(self) -> str:
        """Name of the projector's module."""
        return self.projector[0].rstrip(".")


FAMILIES = {
    "llava": Family(),
    "llava_next": Family(
        projector=("model.multi_modal_projector.", "model.image_newline"), packs_views=True
    ),
}


def family_of(config: PretrainedConfig) -> Family:
    """Return the family of a model config.

    Raises:
        CheckpointError: The model type is not one of `FAMILIES`.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        has_vision = hasattr(config, "vision_config")
        kind = "a model of another family" if has_vision else "a text-only model"
        raise CheckpointError(
            f"The checkpoint is {kind} (model_type {config.model_type!r}). Expected one of: "
            f"{', '.join(FAMILIES)}. Choose such a checkpoint, or add the family to FAMILIES in "
            "lightning_mllm/models/families.py."
        )
    return family
