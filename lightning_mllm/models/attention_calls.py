"""Attention as the layers of an LLM call it: with queries and keys that are normed and rotated.

All models of transformers look attention up by name in `AttentionInterface`, and call it with the
module that wants it. Within the block a function stands there that shows the call and then does
what was asked. So nothing of a family's arithmetic (norms of queries and keys, rotary axes, shared
keys, scales, sliding windows) is repeated here. Eager attention is no common function, but its
modules return their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from lightning_mllm.models.hooks import hook_second_outputs

_UNKNOWN = ("position_bias", "softcap", "s_aux")  # what changes weights besides scale and mask
_WITH_MASK = 2  # positional arguments after the key: the value, and the mask
KeyT = TypeVar("KeyT")


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What an attention module asks for.

    Attributes:
        query: (batch, heads, rows, head width).
        key: (batch, key heads, keys, head width); heads share keys in their order.
        mask: (batch or 1, heads or 1, rows, keys): bool, True where a key is seen, or what is added
            to the scores; None for causal attention, or for all keys.
        scaling: What the products of queries and keys are multiplied by.
        causal: Whether a row sees no later keys where there is no mask.
        unknown: Names of arguments that change the weights in another way.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    causal: bool
    unknown: tuple[str, ...] = ()

    @property
    def counts(self) -> tuple[int, int]:
        """Number of rows, and of keys."""
        return self.query.shape[2], self.key.shape[2]

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.query.device

    def weights(self, index: Tensor) -> Tensor:
        """Return the softmax of some rows' scores, in float32, or in float64 for a model in that.

        Args:
            index: (batch, chosen), numbers of the rows.

        Returns:
            (batch, heads, chosen, keys).
        """
        (batch, key_heads, keys, width), heads = self.key.shape, self.query.shape[1]
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        query = _take_rows(self.query, index).to(dtype).view(batch, key_heads, -1, width)
        with torch.autocast(query.device.type, enabled=False):
            scores = query @ self.key.to(dtype).transpose(2, 3) * self.scaling
        return self._hide(scores.view(batch, heads, -1, keys), index).softmax(-1)

    def _hide(self, scores: Tensor, index: Tensor) -> Tensor:
        """Lower the scores of keys that the rows do not see."""
        lowest, keys = torch.finfo(scores.dtype).min, scores.shape[-1]
        if self.mask is not None:
            own = _take_rows(self.mask[..., :keys].expand(len(index), -1, -1, -1), index)
            return scores.masked_fill(~own, lowest) if own.dtype == torch.bool else scores + own
        if not self.causal:
            return scores
        places = torch.arange(keys, device=scores.device)
        return scores.masked_fill(places > index[:, None, :, None], lowest)


@dataclass(frozen=True, eq=False)
class EagerAttention:
    """What an attention module with eager attention has computed.

    Attributes:
        every: Its weights, (batch, heads, rows, keys).
        unknown: As of `AttentionCall`.
    """

    every: Tensor
    unknown: tuple[str, ...] = ()

    @property
    def counts(self) -> tuple[int, int]:
        """Number of rows, and of keys."""
        return self.every.shape[2], self.every.shape[3]

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.every.device

    def weights(self, index: Tensor) -> Tensor:
        """Return those of some rows, as `AttentionCall.weights` does."""
        own = _take_rows(self.every, index)
        return own.to(torch.promote_types(own.dtype, torch.float32))


@contextmanager
def hook_attention_calls(
    modules: Mapping[nn.Module, KeyT],
    implementation: str,
    function: Callable[[KeyT, AttentionCall | EagerAttention], None],
) -> Iterator[None]:
    """Show a function how attention modules call, or have computed, attention; nothing changes.

    Args:
        modules: Attention module -> its key.
        implementation: Under which name they look attention up.
        function: Gets the module's key, and the call.
    """
    if implementation == "eager":
        named = {key: module for module, key in modules.items()}
        with hook_second_outputs(named, lambda key, every: function(key, EagerAttention(every))):
            yield
        return
    own: Callable[..., Any] = AttentionInterface()[implementation]

    def show(module: nn.Module, query: Tensor, key: Tensor, *rest: Any, **named: Any) -> Any:
        if module in modules:
            mask = named["attention_mask"] if len(rest) < _WITH_MASK else rest[1]
            function(modules[module], _read_call(module, query, key, mask, named))
        return own(module, query, key, *rest, **named)

    AttentionInterface.register(implementation, show)
    try:
        yield
    finally:
        AttentionInterface.register(implementation, own)


def _read_call(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, named: Mapping[str, Any]
) -> AttentionCall:
    scaling, causal = named.get("scaling"), named.get("is_causal")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = getattr(module, "is_causal", True) if causal is None else causal
    unknown = tuple(name for name in _UNKNOWN if named.get(name) is not None)
    return AttentionCall(query, key, mask, scaling, causal and query.shape[2] > 1, unknown)


def _take_rows(values: Tensor, index: Tensor) -> Tensor:
    """Return some rows, (batch, heads, chosen, n), of (batch, heads, rows, n)."""
    rows = index[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3])
    return values.gather(2, rows)
