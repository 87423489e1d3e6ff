"""How a bank is made."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers

_FEW_LAYERS = 9  # of which a bank has all
_EARLY = (1, 2, 4, 8, 16, 24)  # of others, with the last but one and the last but two, as published


@dataclass(frozen=True)
class BankOptions:
    """How a bank is made.

    Attributes:
        contexts: Most contexts of each token.
        layers: In front of which layers states are kept, 0 to L. By default all of a small LLM,
            and 1, 2, 4, 8, 16, 24, L - 2 and L - 1 of one with more than eight layers.
        max_length: How many tokens of a text are read.
        seed: Seed of the draw of contexts.
    """

    contexts: int = 20
    layers: tuple[int, ...] | None = None
    max_length: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.contexts < 1 or self.max_length < 3:
            raise ConfigError(
                "A bank has one context of a token or more, of texts of three tokens or more; "
                f"found contexts {self.contexts} and max_length {self.max_length}."
            )

    def choose_layers(self, backbone: Backbone) -> tuple[int, ...]:
        """Return the layers of a model's bank.

        Raises:
            ConfigError: There is no such layer.
        """
        depth = len(decoder_layers(backbone))
        if self.layers is None:
            if depth < _FEW_LAYERS:
                return tuple(range(depth + 1))
            early = {layer for layer in _EARLY if layer < depth}
            return tuple(sorted({*early, depth - 2, depth - 1}))
        if unknown := [layer for layer in self.layers if not 0 <= layer <= depth]:
            raise ConfigError(
                f"The bank's layers have {unknown[0]}; the model has states 0 to {depth}."
            )
        return tuple(sorted(set(self.layers)))
