"""Vectors that steer: one for each place between layers, and what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.models.backbone import Backbone, fingerprint_backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.store.files import write_tensor_file
from lightning_mllm.store.fingerprint import fingerprint_tensors
from lightning_mllm.store.seeds import torch_generator

_KEY = "lightning_mllm"  # our entry in a file's metadata
_HOLDS = "steering vector"


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction in the residual stream, for each place where it can be added.

    Attributes:
        name: What it leads from and to, e.g. "red->blue".
        read_at: The segments over whose tokens states were averaged, see `Steer`.
        states: (layers + 1, width) float32: entry l is what is added in front of layer l, counted
            from 0; the last one is added in front of the final norm.
        weights: Fingerprint of the model that it is for.
        samples: How many samples each of its means is made of.
    """

    name: str
    read_at: str
    states: Tensor
    weights: str
    samples: Mapping[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A short hash of the vector."""
        return fingerprint_tensors([("states", self.states)], self.read_at)[:16]

    def check_fits(self, backbone: Backbone) -> None:
        """Refuse a model with another number of layers, another width, or other weights.

        Raises:
            ConfigError: It has.
        """
        check_vector_shape(self.states, backbone, self.name)
        check_vector_weights(self.weights, backbone, f"The vector {self.name!r}")

    def save(self, path: Path) -> None:
        """Write a safetensors file.

        Raises:
            CheckpointError: The disk is full or can't be written.
        """
        about = {
            "holds": _HOLDS,
            "name": self.name,
            "read_at": self.read_at,
            "weights": self.weights,
            "samples": dict(self.samples),
        }
        metadata = {"format": "pt", _KEY: json.dumps(about)}
        try:
            write_tensor_file(path, {"states": self.states.cpu()}, metadata)
        except OSError as error:
            raise CheckpointError(
                f"{path} could not be written: {error}. Free some space, or choose another disk."
            ) from error

    @classmethod
    def load(cls, path: Path) -> SteeringVector:
        """Read such a file.

        Raises:
            CheckpointError: The file is missing or damaged, or holds something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[_KEY])
                if about.pop("holds") == _HOLDS:
                    return cls(states=file.get_tensor("states"), **about)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} can't be read as a steering vector ({type(error).__name__}: {error}). "
                "Name a file that SteeringVector.save has written."
            ) from error
        raise CheckpointError(f"{path} is not a steering vector of this package.")


def check_vector_shape(states: Tensor, backbone: Backbone, name: str) -> None:
    """Refuse vectors of another number of layers, or another width, than the model's.

    Raises:
        ConfigError: They are.
    """
    expected = (len(decoder_layers(backbone)) + 1, vector_width(backbone))
    if states.shape != expected:
        raise ConfigError(
            f"The vector {name!r} is of shape {tuple(states.shape)}, but this model needs "
            f"{expected}: places in front of layers and of the final norm, and its width. Read one "
            "from this model."
        )


def vector_width(backbone: Backbone) -> int:
    """Return the width of the residual stream."""
    width: int = backbone.model.get_decoder().config.hidden_size
    return width


def check_vector_weights(weights: str, backbone: Backbone, what: str) -> None:
    """Refuse a model with other weights than those of which states were read.

    Raises:
        ConfigError: It has others.
    """
    now = fingerprint_backbone(backbone.model)
    if weights != now:
        raise ConfigError(
            f"{what} was read from a model with the weights {weights}, but this one has {now}. "
            "Read the states of this model; or, to add it all the same, give steering the tensor "
            "`vector.states[layer]`."
        )


def draw_vectors(states: Tensor, count: int, seed: int, key: str = "") -> Tensor:
    """Return random vectors with the norms of others, (count, ..., layers, width) float32.

    A vector has one direction in all layers, as vectors between classes nearly have: else those of
    several layers would cancel each other out, and be a weaker control.

    Args:
        states: (..., layers, width), whose norms they get.
        count: How many are drawn.
        seed: Seed of the draw.
        key: Draws with different keys are independent of each other.
    """
    shape = (count, *states.shape[:-2], 1, states.shape[-1])
    noise = torch.randn(shape, generator=torch_generator("steering", seed, key))
    norms = states.float().cpu().norm(dim=-1, keepdim=True)
    drawn: Tensor = noise / noise.norm(dim=-1, keepdim=True) * norms
    return drawn
