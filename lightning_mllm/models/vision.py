"""From pixels to what the LLM gets for an image, bit for bit as the Hugging Face model does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from lightning_mllm.store.fingerprint import fingerprint_tensors

Stage = Literal["pre", "post"]


@dataclass(frozen=True)
class VisionPath:
    """Tower and projector of an MLLM, each of which can be run alone.

    Attributes:
        model: The MLLM, for its config and its method that packs views.
        tower: The vision encoder.
        projector: The network between tower and LLM.
        packs_views: Whether an image has several views, whose projected tokens are cropped and
            packed into rows (LLaVA-NeXT).
    """

    model: PreTrainedModel
    tower: nn.Module
    projector: nn.Module
    packs_views: bool

    def encode(self, vision: Mapping[str, Tensor], stage: Stage) -> list[Tensor]:
        """Return each image's features; see `Backbone.encode_images`."""
        images = self.split(vision)
        features = self.tower_features(images)
        return (
            self.project(features, images)
            if stage == "post"
            else [self.patches(each) for each in features]
        )

    def split(self, vision: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return each image's own tensors, `pixel_values` as (views, channels, height, width).

        The first view is the whole picture. Views that only fill an image up to the batch's largest
        number of views are left out.
        """
        images = []
        for row in range(len(vision["pixel_values"])):
            image = {name: values[row] for name, values in vision.items()}
            pixels = image["pixel_values"]
            if self.packs_views:
                image["pixel_values"] = pixels[: self._count_views(image)]
            else:
                image["pixel_values"] = pixels[None]
            images.append(image)
        return images

    def tower_features(self, images: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        """Return the tower's output for each image at the tapped layer: (views, tokens, width).

        The class token, if there is one, comes first. Several tapped layers are concatenated.

        Args:
            images: From `split`, on any device.
        """
        pixels = torch.cat([image["pixel_values"] for image in images]).to(self.model.device)
        tap = self.model.config.vision_feature_layer
        states = self.tower(pixels, output_hidden_states=tap, return_dict=True).hidden_states
        tapped = (
            states[tap]
            if isinstance(tap, int)
            else torch.cat([states[layer] for layer in tap], dim=-1)
        )
        return list(tapped.split([len(image["pixel_values"]) for image in images]))

    def patches(self, features: Tensor) -> Tensor:
        """Return an image's tower features that are projected, often without the class token."""
        strategy = getattr(self.model.config, "vision_feature_select_strategy", "default")
        return features[:, 1:] if strategy == "default" else features

    def class_token(self, features: Tensor) -> Tensor | None:
        """Return the class token of an image, (views, width); None if the tower has none."""
        config = self.model.config.vision_config
        patches = (config.image_size // config.patch_size) ** 2
        return features[:, 0] if features.shape[1] == patches + 1 else None

    def project(
        self, features: Sequence[Tensor], images: Sequence[Mapping[str, Tensor]]
    ) -> list[Tensor]:
        """Return what the LLM gets for each image, (tokens, width), by the projector alone.

        Args:
            features: From `tower_features` or a cache, on any device, in a dtype of the projector.
            images: The images that the features are of.
        """
        model: Any = self.model
        projected = self.projector(self.patches(torch.cat(list(features)).to(self.model.device)))
        per_image = projected.split([len(views) for views in features])
        if self.packs_views:
            per_image, _ = model.pack_image_features(
                per_image,
                [image["image_sizes"] for image in images],
                vision_feature_select_strategy=model.config.vision_feature_select_strategy,
                image_newline=model.get_parameter("model.image_newline"),
            )
        # the dtype is changed last: under autocast, packing rounds image_newline
        dtype = model.get_input_embeddings().weight.dtype
        return [tokens.reshape(-1, tokens.shape[-1]).to(dtype) for tokens in per_image]

    @torch.no_grad()
    def fingerprint(self) -> str:
        """Hash what `tower_features` depend on besides the image: weights, buffers and config.

        Every value is read, which takes about a second for a ViT-L.
        """
        config = self.model.config
        settings = (config.vision_feature_layer, config.vision_config._attn_implementation)
        tensors = (*self.tower.named_parameters(), *self.tower.named_buffers())
        return fingerprint_tensors(tensors, f"{settings}{config.vision_config.to_json_string()}")[
            :32
        ]

    def _count_views(self, image: Mapping[str, Tensor]) -> int:
        config = self.model.config
        side = config.vision_config.image_size
        return int(
            image_size_to_num_patches(image["image_sizes"], config.image_grid_pinpoints, side)
        )
