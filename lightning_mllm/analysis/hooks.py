"""The only place that puts hooks on a model; whatever happens, they are gone behind the `with` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

Arguments = dict[str, Any]
BeforeLayer = Callable[[int, Tensor, Arguments], Arguments | None]


@contextmanager
def before_layers(layers: Mapping[int, nn.Module], function: BeforeLayer) -> Iterator[None]:
    """Call a function before each of these decoder layers runs.

    Args:
        layers: Index -> decoder layer.
        function: Gets the layer's index, the residual stream that enters it, (batch, rows, width), and the layer's
            other arguments, all by keyword. Returns those to use instead, or None to leave them as they are.
    """
    handles = []
    try:
        for index, layer in layers.items():
            hook = partial(_call, function, index)
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _call(
    function: BeforeLayer, index: int, module: nn.Module, positional: tuple[Any, ...], keywords: Arguments
) -> tuple[tuple[Any, ...], Arguments] | None:
    others = dict(keywords)
    hidden = positional[0] if positional else others.pop("hidden_states")
    changed = function(index, hidden, others)
    return None if changed is None else ((hidden, *positional[1:]), changed)


@contextmanager
def output_of(module: nn.Module, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a module return what a function makes of its input, instead of its own output."""
    handle = module.register_forward_hook(lambda _, positional, __: function(positional[0]))
    try:
        yield
    finally:
        handle.remove()
