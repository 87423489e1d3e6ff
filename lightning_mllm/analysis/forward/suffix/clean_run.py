"""One pass with nothing hidden, and what single rows need of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.analysis.forward.hidden_keys import find_horizons
from lightning_mllm.analysis.forward.prompts import Prompts
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import Arguments, hook_before_layers, hook_between_layers
from lightning_mllm.models.layers import decoder_layers, layers_and_norm

_PER_POSITION = ("position_ids", "position_embeddings")
_REPLACED = ("attention_mask", "past_key_values", "use_cache", *_PER_POSITION)


class UnfitRunError(Exception):
    """Single rows can't be run after this model's clean run; the message says why."""


@dataclass(frozen=True)
class CleanRun:
    """What a pass with nothing hidden has computed, layer by layer.

    Attributes:
        logits: (batch, vocabulary), at the last position.
        real: (batch, sequence) bool, False at padding.
        keys: Per layer, the keys: (batch, key heads, sequence, head width).
        values: Per layer, the values: (batch, key heads, sequence, head width).
        tail: The first position for which `residuals` are kept.
        residuals: Per layer, what enters it: (batch, sequence - tail, width).
        arguments: Per layer, what else it was called with.
        between: Layer -> what is added to its output before the next one, as `residuals`.
        horizon: (batch, sequence), the last position that each can attend to; see `HiddenKeys`.
    """

    logits: Tensor
    real: Tensor
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    tail: int
    residuals: Sequence[Tensor]
    arguments: Sequence[Arguments]
    between: Mapping[int, Tensor]
    horizon: Tensor | None

    @classmethod
    def of(cls, backbone: Backbone, prompts: Prompts, tail: int) -> CleanRun:
        """Run the prompts.

        Raises:
            UnfitRunError: A layer does not keep the keys and values of all positions, or gets
                arguments that are not understood.
        """
        residuals: list[Tensor] = []
        arguments: list[Arguments] = []

        def keep(layer: int, hidden: Tensor, others: Arguments) -> None:
            residuals.append(hidden[:, tail:].clone())
            arguments.append(others)

        layers, between = decoder_layers(backbone), dict[int, Tensor]()
        with (
            hook_before_layers(dict(enumerate(layers)), keep),
            hook_between_layers(layers_and_norm(backbone), between),
        ):
            logits, cache = prompts.forward(backbone, use_cache=True)
        length = prompts.batch.input_ids.shape[1]
        _check_arguments(arguments, length)
        keys, values = [], []
        for index in range(len(layers)):
            of_layer = _keys_and_values(cache, index, length)
            keys.append(of_layer[0])
            values.append(of_layer[1])
        real = prompts.batch.attention_mask.bool()
        between = {layer: added[:, tail:].clone() for layer, added in between.items()}
        horizon = find_horizons(backbone.family.sees, prompts.batch.spans)
        return cls(logits, real, keys, values, tail, residuals, arguments, between, horizon)

    def arguments_at(self, layer: int, columns: Tensor) -> Arguments:
        """Return a layer's arguments for rows at these positions, besides mask and cache."""
        changed = dict(self.arguments[layer])
        for name in _PER_POSITION:
            value = changed.get(name)
            if isinstance(value, Tensor):
                changed[name] = value[:, columns]
            elif value is not None:
                changed[name] = tuple(part[:, columns] for part in value)
        return changed


@dataclass(frozen=True)
class CleanRunPrefix:
    """A layer's cache: clean keys and values of `length` positions, and after them the rows'."""

    clean: CleanRun
    length: int

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the keys and values that the rows attend to; nothing is kept."""
        clean_keys = self.clean.keys[layer][:, :, : self.length]
        clean_values = self.clean.values[layer][:, :, : self.length]
        return torch.cat([clean_keys, keys], dim=2), torch.cat([clean_values, values], dim=2)

    def get_seq_length(self, layer: int = 0) -> int:
        """Return the number of clean positions."""
        return self.length


def _check_arguments(arguments: Sequence[Arguments], length: int) -> None:
    for each in arguments:
        for name, value in each.items():
            parts = value if isinstance(value, (tuple, list)) else [value]
            tensors = [part for part in parts if isinstance(part, Tensor)]
            if name in _PER_POSITION and not all(
                part.ndim >= 2 and part.shape[1] == length for part in tensors
            ):
                raise UnfitRunError(
                    f"its layers get {name} of another shape than (batch, sequence, ...)"
                )
            if name not in _REPLACED and (tensors or (isinstance(value, dict) and value)):
                raise UnfitRunError(
                    f"its layers also get {name!r}, and what that means for single rows is not "
                    "known"
                )


def _keys_and_values(cache: Any, layer: int, length: int) -> tuple[Tensor, Tensor]:
    kept = cache.layers[layer] if cache is not None and layer < len(cache.layers) else None
    keys, values = getattr(kept, "keys", None), getattr(kept, "values", None)
    window = getattr(kept, "sliding_window", None)  # of more positions, it is none
    slides = window is not None and window <= length
    if keys is None or values is None or slides or keys.shape[2] != length:
        raise UnfitRunError(f"its layer {layer} does not keep the keys and values of all positions")
    return keys, values
