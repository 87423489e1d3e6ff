"""The LLM's layers: where they are, how to run them under hooks, which masks they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.vision import EncodedImage


def decoder_layers(backbone: Backbone) -> list[nn.Module]:
    """Return the LLM's layers, in order."""
    layers: Any = backbone.decoder.layers
    return list(layers)


def layers_and_norm(backbone: Backbone) -> list[nn.Module]:
    """Return the modules that the residual stream enters, in order: the layers and the final norm.

    What enters number k is the state after k layers; what enters number 0 are the embeddings.
    """
    return [*decoder_layers(backbone), backbone.final_norm]


def run_layers_uncompiled(
    backbone: Backbone, batch: MultimodalBatch, images: Sequence[EncodedImage] = ()
) -> Any:
    """Run the model without its head, and without what torch.compile made of it.

    A compiled model would go on without the hooks that were put on after its compilation.

    Args:
        backbone: The model.
        batch: The inputs; without pixels where `images` are given.
        images: What the LLM gets for each image, if it is already known.

    Returns:
        The output of the Hugging Face model, with `last_hidden_state`, (batch, sequence, width).
    """
    forward: Any = backbone.model.base_model.forward
    encoded = backbone.vision_path.join(images)
    return forward(**batch.model_inputs(), **encoded, use_cache=False)


def scale_added(layer: nn.Module, added: Tensor) -> Tensor:
    """Return what attention or FFN adds to the stream, which Granite's layers scale before."""
    multiplier: float = getattr(layer, "residual_multiplier", 1.0)
    return added if multiplier == 1.0 else added * multiplier


def layers_without_keys(backbone: Backbone) -> list[int]:
    """Return the numbers of the layers that mix tokens in another way than by attention to keys."""
    config: Any = backbone.decoder.config
    found = []
    for number, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if "attention" not in kind or "linear" in kind:
            found.append(number)
    return found


def attention_of_layers(backbone: Backbone) -> str:
    """Return the name of the LLM's attention implementation."""
    return str(backbone.model.get_decoder().config._attn_implementation)


def layer_mask_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype of an additive mask: that of the queries, under autocast too."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def layer_hidden_value(dtype: torch.dtype) -> float:
    """Return the value of an additive mask where a key is hidden: below any score, yet finite.

    Eager attention computes its softmax in float32. For a padding row, from which every key is
    hidden, -inf would give NaN.
    """
    return max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
