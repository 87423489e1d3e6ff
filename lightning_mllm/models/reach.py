"""Which parameters of a vision tower have a part in what is projected, found on shapes alone.

The model's tensors are replaced by ones without data, and the model's own `get_image_features` runs
on a picture without data, up to the projector. What autograd has drawn on the way says which
parameters a gradient can reach. Nothing is computed or allocated.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.func import functional_call

from lightning_mllm.errors import CheckpointError
from lightning_mllm.models.hooks import hook_inputs
from lightning_mllm.models.vision import VisionPath

_OTHER_INPUTS = ("image_grid", "image_position", "pixel_attention")  # grids, positions, masks


def find_reached(path: VisionPath) -> frozenset[str]:
    """Return the names of the tower's parameters that a gradient reaches, as in the tower.

    A tower that needs more than a picture can't run so: one for pictures of any size, whose patches
    come with a grid, positions or a mask, or one whose way depends on the pixels. Of these, all
    parameters up to the last tapped layer are meant, all of which such towers use; and those after
    the layers, unless the config names a layer whose states are projected.
    """
    picture = _make_picture(path)
    if picture is None:
        return _before_last_tap(path)
    without_data = {}
    for name, tensor in (*path.model.named_parameters(), *path.model.named_buffers()):
        # of the whole shape also where the model is sharded
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        without_data[name] = empty.requires_grad_(empty.is_floating_point())
    try:
        entering = _run_to_projector(path, without_data, picture)
    except RuntimeError:  # what torch says to a question about values that are not there
        return _before_last_tap(path)
    reached, prefix = _leaves(entering), f"{path.family.tower_name}."
    names = (name for name, _ in path.tower.named_parameters())
    return frozenset(name for name in names if id(without_data[prefix + name]) in reached)


def _before_last_tap(path: VisionPath) -> frozenset[str]:
    unused: set[int] = set()
    for layer in path.tower_layers[1 + max(path.taps) :]:
        unused |= set(map(id, layer.parameters()))
    if getattr(path.model.config, "vision_feature_layer", None) is not None:
        unused |= _after_layers(path)
    named = path.tower.named_parameters()
    return frozenset(name for name, parameter in named if id(parameter) not in unused)


def _after_layers(path: VisionPath) -> set[int]:
    """Return the ids of the tower's parameters that were made after its layers, as a last norm."""
    inside = set(map(id, path.tower_layers.parameters()))
    parameters = [id(parameter) for parameter in path.tower.parameters()]
    last = max(k for k, parameter in enumerate(parameters) if parameter in inside)
    return set(parameters[last + 1 :])


class _Arrived(Exception):  # no error
    """The features have arrived at the projector."""

    def __init__(self, features: Tensor) -> None:
        self.features = features


class _Encoding(nn.Module):
    """The model's own way from pixels to features as a forward, whose tensors can be replaced."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Any:
        model: Any = self.model
        return model.get_image_features(**inputs)


def _run_to_projector(
    path: VisionPath, tensors: Mapping[str, Tensor], picture: Mapping[str, Tensor]
) -> Tensor:
    """Return what enters the projector if the model has these tensors."""

    def stop(_: str, features: Tensor) -> None:
        raise _Arrived(features)

    named = {f"model.{name}": tensor for name, tensor in tensors.items()}
    encoding = _Encoding(path.model)
    with torch.enable_grad(), _eager(path.tower), hook_inputs({"": path.projector}, stop):
        try:
            functional_call(encoding, named, kwargs=dict(picture))
        except _Arrived as arrived:
            return arrived.features
    raise CheckpointError(
        f"{type(path.model).__name__}.get_image_features does not run "
        f"{path.family.projector_name}, which its family names as the projector. Name the module "
        "that the tower's output enters."
    )


def make_fixed_picture(path: VisionPath) -> dict[str, Tensor] | None:
    """Return a picture of the tower's size without data, for towers that take nothing else."""
    picture = _make_picture(path)
    return picture if picture is not None and picture.keys() == {"pixel_values"} else None


def _make_picture(path: VisionPath) -> dict[str, Tensor] | None:
    """Return a picture of the tower's size without data; None if a picture is not enough."""
    features: Any = path.model.get_image_features
    expected = inspect.signature(features).parameters
    config: Any = path.model.config.vision_config
    size = getattr(config, "image_size", None)
    if size is None or any(name.startswith(_OTHER_INPUTS) for name in expected):
        return None
    height, width = (size, size) if isinstance(size, int) else size
    dtype = next(path.tower.parameters()).dtype
    pixels = torch.empty(1, config.num_channels, height, width, dtype=dtype, device="meta")
    if "image_sizes" not in expected:
        return {"pixel_values": pixels}
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}


@contextmanager
def _eager(tower: nn.Module) -> Iterator[None]:
    """Let a tower attend without kernels, which would want data."""
    config: Any = tower.config
    before, config._attn_implementation = config._attn_implementation, "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def _leaves(output: Tensor) -> set[int]:
    """Return the ids of the tensors that a gradient of the output reaches."""
    leaves, seen = set(), set()
    todo: list[Node | None] = [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaves.add(id(getattr(node, "variable", None)))
        todo += [before for before, _ in node.next_functions]
    return leaves
