"""From pixels to what the LLM gets for an image, by the Hugging Face model's own code.

Nothing of a family's arithmetic is repeated. `get_image_features` runs whole, and hooks see what
enters the projector. To run the projector alone, on tower states that a cache has, the tower's
layers return what they returned before instead of computing it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mllm.batches import Image, join_images
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.families import Family
from lightning_mllm.models.hooks import Arguments, Work, hook_in_layers, hook_inputs, hook_outputs
from lightning_mllm.models.image_shares import ImageShares, count_image_rows
from lightning_mllm.store.fingerprint import fingerprint_tensors

# of the output of `get_image_features`; the rest is said once for all images
_PER_IMAGE = (
    "last_hidden_state",
    "pooler_output",
    "hidden_states",
    "attentions",
    "deepstack_features",
)


@dataclass(frozen=True)
class EncodedImage:
    """What the LLM gets for one image.

    Attributes:
        features: (..., width), in the shape in which the model makes them.
        deep: (tokens, width) each, what the first LLM layers get added at the image's positions
            after their own work (DeepStack); empty in most families.
        shared: What else the model's output says, the same for all images (Ovis 2's indicators).
    """

    features: Tensor
    deep: tuple[Tensor, ...] = ()
    shared: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> Tensor:
        """(tokens, width): the features, bit for bit what stands at the image's positions."""
        return self.features.reshape(-1, self.features.shape[-1])


@dataclass(frozen=True)
class ImageStates:
    """What was seen of one image on its way to the LLM.

    Attributes:
        encoded: What the LLM gets.
        projected_from: (views, tokens, width), what enters the projector.
        tower: (taps, views, tokens, width), what leaves each tower layer that is tapped; one view
            where the family has no view dimension.
        layers: k -> (views, tokens, width), what tower layer k puts out; 0: what enters the first.
    """

    encoded: EncodedImage
    projected_from: Tensor
    tower: Tensor
    layers: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class VisionPath:
    """Tower and projector of an MLLM.

    Attributes:
        model: The MLLM.
        family: The model's family.
    """

    model: PreTrainedModel
    family: Family

    @property
    def tower(self) -> nn.Module:
        """The vision encoder."""
        return self.model.get_submodule(self.family.tower_name)

    @property
    def projector(self) -> nn.Module:
        """The network between vision encoder and LLM."""
        return self.model.get_submodule(self.family.projector_name)

    @property
    def tower_layers(self) -> nn.ModuleList:
        """The tower's transformer layers.

        Raises:
            CheckpointError: The tower has no list of as many layers as its config says.
        """
        config: Any = self.model.config.vision_config
        depth = getattr(config, "num_hidden_layers", None) or getattr(config, "depth", None)
        for module in self.tower.modules():
            if isinstance(module, nn.ModuleList) and len(module) == depth:
                return module
        raise CheckpointError(
            f"The vision tower ({type(self.tower).__name__}) has no list of {depth} layers, as its "
            "config says. Use a checkpoint of a supported tower."
        )

    @property
    def taps(self) -> list[int]:
        """Numbers of the tower layers whose output goes elsewhere than to the next layer."""
        config: Any = self.model.config
        layer: Any = getattr(config, "vision_feature_layers", None)
        if layer is None:
            layer = getattr(config, "vision_feature_layer", None)
        if layer is None:
            layer = -1
        depth = len(self.tower_layers)
        found = set(getattr(config.vision_config, "deepstack_visual_indexes", None) or ())
        layers = [layer] if isinstance(layer, int) else list(layer)
        layers += [tap for tap, _ in getattr(config, "deepstack_layer_map", None) or ()]
        layers += [getattr(config, "spatial_vision_layer", layers[0])]
        for each in layers:
            if each == 0:
                raise CheckpointError(
                    "The model projects the embeddings of its vision tower (vision_feature_layer "
                    "0), not the output of one of its layers, which is not supported. Use a "
                    "checkpoint that taps a layer."
                )
            found.add(each - 1 if each > 0 else depth + each)
        return sorted(found)

    def encode(self, images: Sequence[Image]) -> list[EncodedImage]:
        """Return what the LLM gets for each image.

        Args:
            images: As in `MultimodalBatch`, on any device; not empty.
        """
        return self._split_features(self._run(images), images)

    def observe(self, images: Sequence[Image], layers: Sequence[int] = ()) -> list[ImageStates]:
        """Do as `encode`, and return what was seen on the way.

        Args:
            images: As for `encode`.
            layers: Numbers of further tower layers to look at, as in `ImageStates.layers`.
        """
        tower: dict[int, Tensor] = {}
        entering: list[Tensor] = []
        wanted = {*self.taps, *(layer - 1 for layer in layers if layer)}
        taps = {tap: self.tower_layers[tap] for tap in sorted(wanted)}
        first = {-1: self.tower_layers[0]} if 0 in layers else {}
        projector = {self.family.projector_name: self.projector}
        with (
            hook_outputs(taps, tower.__setitem__),
            hook_inputs(first, tower.__setitem__),
            hook_inputs(projector, lambda _, value: entering.append(value)),
        ):
            encoded = self.encode(images)
        shares = ImageShares(images, [len(each.tokens) for each in encoded])
        entered = entering[0]
        if entered.ndim == 4:  # (views, width, rows, columns), for a projector that convolves
            entered = entered.flatten(2).mT
        projected_from = shares.split(entered)
        per_tap = [shares.split(tower[tap]) for tap in self.taps]
        states = [torch.stack(each) for each in zip(*per_tap, strict=True)]
        per_layer = {layer: shares.split(tower[layer - 1]) for layer in layers}
        seen = []
        for k, each in enumerate(encoded):
            own = {layer: split[k] for layer, split in per_layer.items()}
            seen.append(ImageStates(each, projected_from[k], states[k], own))
        return seen

    def replay(self, images: Sequence[Image], states: Sequence[Tensor]) -> list[ImageStates]:
        """Do as `observe` without the tower's work.

        Args:
            images: The images that the states are of.
            states: `ImageStates.tower` of each, on any device, in a dtype of the projector.
        """
        flat = [each.to(self.model.device).flatten(1, -2) for each in states]
        joined = dict(zip(self.taps, torch.cat(flat, dim=1), strict=True))
        layers = dict(enumerate(self.tower_layers))

        def give_back(index: int, _: nn.Module, hidden: Tensor, __: Arguments) -> Work:
            given = joined[index].reshape(hidden.shape) if index in joined else None
            return lambda entering: entering if given is None else given.to(entering.dtype)

        with hook_in_layers(layers, give_back):
            return self.observe(images)

    def join(self, encoded: Sequence[EncodedImage]) -> dict[str, Any]:
        """Return arguments of the model's forward that replace pixels by encoded images.

        Args:
            encoded: All images of a batch; if there are none, nothing is replaced.
        """
        if not encoded:
            return {}
        features: Any = [each.features for each in encoded]
        if features[0].ndim > 2:  # a list or one tensor, as the model's own `get_image_features`
            features = torch.cat(features)
        per_image = [each.deep for each in encoded]
        deep = [list(layer) for layer in zip(*per_image, strict=True)]
        output = SimpleNamespace(
            **encoded[0].shared, pooler_output=features, deepstack_features=deep
        )
        return {"mm_encoder_outputs": {"image": output}}

    def class_token(self, tower: Tensor) -> Tensor | None:
        """Return the class token of an image, (views, width); None if the tower has none.

        Several tapped layers are concatenated.

        Args:
            tower: As in `ImageStates`.
        """
        if not self.count_class_tokens(tower.shape[2]):
            return None
        return torch.cat(list(tower[:, :, 0]), dim=-1)

    def count_class_tokens(self, tokens: int) -> int:
        """Return how many of a view's tokens in the tower are not patches; 0 if all are.

        The class token is the first of them; registers follow it.

        Args:
            tokens: How many tokens a view has in the tower.
        """
        config: Any = self.model.config.vision_config
        side, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
        if side is None or patch is None:
            return 0
        patches = (_edge(side) // _edge(patch)) ** 2
        registers: int = getattr(config, "num_register_tokens", 0)
        return 1 + registers if tokens == 1 + registers + patches else 0

    @torch.no_grad()
    def fingerprint(self) -> str:
        """Hash what the tower's states depend on besides the image: weights, buffers and config.

        Every value is read, which takes about a second for a ViT-L.
        """
        config = self.model.config
        settings = (self.taps, config.vision_config._attn_implementation)
        own = self.tower
        prefix = f"{self.family.tower_name}."
        mergers = tuple(each.removeprefix(prefix) for each in self.family.projector)
        tensors = []
        for name, tensor in (*own.named_parameters(), *own.named_buffers()):
            if not name.startswith(mergers):  # in the tower, but of the projector
                tensors.append((name, tensor))
        return fingerprint_tensors(tensors, f"{settings}{config.vision_config.to_json_string()}")[
            :32
        ]

    def _run(self, images: Sequence[Image]) -> Any:
        """Return the output of the model's own `get_image_features`."""
        model: Any = self.model
        dtype = next(self.tower.parameters()).dtype
        inputs: dict[str, Any] = {}
        for name, value in join_images(images).items():
            inputs[name] = value.to(model.device, dtype if value.is_floating_point() else None)
        name = "vision_feature_layer"  # Aria's forward hands it on, its function does not look
        layer = getattr(model.config, name, None)
        if layer is not None and name in inspect.signature(model.get_image_features).parameters:
            inputs[name] = layer
        return model.get_image_features(**inputs, return_dict=True)

    def _split_features(self, output: Any, images: Sequence[Image]) -> list[EncodedImage]:
        """Return each image's part of the output of `get_image_features`."""
        embedding: Any = self.model.get_input_embeddings()
        dtype = embedding.weight.dtype
        features = output.pooler_output
        if features is None:
            raise ConfigError(
                f"A {type(self.model).__name__} adds the features of an image between the layers "
                "of its LLM and puts none at its input, so that they can't be probed, blocked or "
                "encoded once. Train and evaluate it without, or choose a model of another family."
            )
        if isinstance(features, Tensor):
            features = features.split(count_image_rows(images, len(features)))
        deep = getattr(output, "deepstack_features", None) or []
        shared = {name: value for name, value in output.items() if name not in _PER_IMAGE}
        encoded = []
        for k, own in enumerate(features):
            layers = tuple(layer[k].to(dtype) for layer in deep)
            encoded.append(EncodedImage(own.to(dtype), layers, shared))
        return encoded


def _edge(value: int | Sequence[int]) -> int:
    """Return the length of one edge of a size that may name both."""
    return value if isinstance(value, int) else int(value[0])
