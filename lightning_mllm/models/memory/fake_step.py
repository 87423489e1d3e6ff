"""Runs forward and backward of a training step on tensors without data, and counts their bytes.

Torch's fake tensors have shapes and dtypes and no data, so a model of any size runs in seconds. The
model's own code runs, under our policies, autocast and gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy

from lightning_mllm.models.adapted import AdaptedModel
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.memory.storages import StorageCounter
from lightning_mllm.models.reach import make_fixed_picture

_DEVICE = "cpu"  # of the fake tensors; the operations are those of other devices, too


@dataclass(frozen=True)
class StepShape:
    """The shapes of a micro-batch.

    Attributes:
        samples: Number of samples.
        tokens: Tokens of each sample, visual ones included; shorter ones are padded to as many.
        answer_tokens: How many tokens of a sample are trained on.
        images: Pictures of each sample.
    """

    samples: int
    tokens: int
    answer_tokens: int
    images: int


def measure_fake_step(adapted: AdaptedModel, shape: StepShape, *, keeps_gradients: bool) -> int:
    """Return how many bytes forward and backward need at most besides the weights.

    Tower and projector are in it if they take pictures of a fixed size (`make_fixed_picture`).

    Args:
        adapted: The model on the meta device, under its policy. It is of no use afterwards.
        shape: The shapes of the micro-batch.
        keeps_gradients: Whether gradients are in it; else each goes away as soon as it is there.
    """
    picture = make_fixed_picture(adapted.backbone.vision_path) if shape.images else None
    with FakeTensorMode():
        _fill_with_fakes(adapted.backbone.model)
        adapted.set_train_modes()
        return _run(adapted, shape, picture, keeps_gradients)


def _fill_with_fakes(model: nn.Module) -> None:
    """Replace parameters and buffers by fake ones; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=_DEVICE)
                fake = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                made[id(parameter)] = made[id(fake)] = fake
            if parameter is not None:
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(
                    buffer.shape, dtype=buffer.dtype, device=_DEVICE
                )


def _run(
    adapted: AdaptedModel,
    shape: StepShape,
    picture: Mapping[str, Tensor] | None,
    keeps_gradients: bool,
) -> int:
    model = adapted.backbone.model
    trained = [each for each in model.parameters() if each.requires_grad]
    for each in trained if not keeps_gradients else ():
        each.register_post_accumulate_grad_hook(_forget_gradient)
    counter = StorageCounter()
    with counter:
        counter.add([*model.parameters(), *model.buffers()])
        weights = counter.live
        with adapted.autocast(_DEVICE, keeps_casts=False):
            loss = _fake_loss(adapted.backbone, shape, picture)
        loss.backward()
    return counter.peak - weights


def _fake_loss(
    backbone: Backbone, shape: StepShape, picture: Mapping[str, Tensor] | None
) -> Tensor:
    """Do as `answer_loss`, whose masks need data."""
    before_llm = backbone.parameters(Part.VISION, Part.VISION_LORA, Part.PROJECTOR)
    is_trained = any(parameter.requires_grad for _, parameter in before_llm)
    embeddings: Any = backbone.model.get_input_embeddings()
    width, dtype = embeddings.weight.shape[1], embeddings.weight.dtype
    shown = torch.empty(shape.samples, 0, width, dtype=dtype, device=_DEVICE)
    if picture is not None:
        size = (shape.samples * shape.images, *picture["pixel_values"].shape[1:])
        model: Any = backbone.model
        features = model.get_image_features(torch.empty(size, device=_DEVICE)).pooler_output
        joined = features if isinstance(features, Tensor) else torch.cat(list(features))
        shown = joined.reshape(shape.samples, -1, width).to(dtype)
    elif shape.images:
        shown = shown.new_empty(shape.samples, shape.tokens, width)[:, : shape.tokens // 2]
        shown.requires_grad_(is_trained)
    words = max(1, shape.tokens - shown.shape[1])
    ids = torch.zeros(shape.samples, words, dtype=torch.long, device=_DEVICE)
    entering = torch.cat([shown, embeddings(ids)], dim=1)
    hidden = backbone.decoder(inputs_embeds=entering, use_cache=False).last_hidden_state
    logits = backbone.logits(hidden[:, -shape.answer_tokens :].flatten(0, 1))
    expected = torch.zeros(len(logits), dtype=torch.long, device=_DEVICE)
    return cross_entropy(logits.float(), expected, reduction="sum")


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None
