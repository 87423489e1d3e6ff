"""Edits of a running model as `with` blocks: look at, or change, what enters or leaves its modules.

All hooks of the package are put on here. After the block they are gone, also after an exception;
blocks nest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Arguments = dict[str, Any]
BeforeLayer = Callable[[int, Tensor, Arguments], Arguments | None]
BeforeCall = Callable[[Arguments], None]
Work = Callable[[Tensor], Tensor]  # residual stream in -> residual stream out
InsteadOfLayer = Callable[[int, nn.Module, Tensor, Arguments], Work | None]
KeyT = TypeVar("KeyT")


class InsteadForward(partial[Any]):
    """The `forward` of a layer within `hook_in_layers`; accelerate may put on others."""


_EXCHANGED = ("forward", "gradient_checkpointing")  # attributes of a layer


@contextmanager
def hook_before_layers(layers: Mapping[int, nn.Module], function: BeforeLayer) -> Iterator[None]:
    """Call a function before each of these decoder layers runs.

    Args:
        layers: Index -> decoder layer.
        function: Gets the layer's index, the residual stream that enters it, (batch, rows, width),
            and the layer's other arguments, all by keyword. Returns the arguments to use instead,
            or None to leave them as they are.
    """
    with _put_on(
        layer.register_forward_pre_hook(partial(_call, function, index), with_kwargs=True)
        for index, layer in layers.items()
    ):
        yield


@contextmanager
def hook_between_layers(modules: Sequence[nn.Module], found: dict[int, Tensor]) -> Iterator[None]:
    """Find what is added to the residual stream between two layers, such as DeepStack's features.

    Args:
        modules: The decoder's layers and its final norm, in order; all of them run.
        found: Gets number of a layer -> what is added to its output before the next module, (batch,
            sequence, width); nothing for a layer whose output enters the next one as it is.
    """
    left: dict[int, Tensor] = {}

    def compare(layer: int, hidden: Tensor, _: Arguments) -> None:
        if layer and (before := left.pop(layer - 1)) is not hidden:
            found[layer - 1] = hidden - before

    named = dict(enumerate(modules))
    with hook_outputs(named, left.__setitem__), hook_before_layers(named, compare):
        yield


@contextmanager
def hook_before_call(module: nn.Module, function: BeforeCall) -> Iterator[None]:
    """Call a function with the keyword arguments of each call of a module, before it runs."""
    with _put_on(
        [
            module.register_forward_pre_hook(
                lambda _, __, keywords: function(keywords), with_kwargs=True
            )
        ]
    ):
        yield


@contextmanager
def hook_before_modules(
    modules: Iterable[tuple[KeyT, nn.Module]], function: Callable[[KeyT], None]
) -> Iterator[None]:
    """Call a function with a module's key before it runs, and before all other hooks on it.

    Args:
        modules: Key and module; keys may repeat.
        function: Gets the key.
    """

    def call(key: KeyT, *_: Any) -> None:
        function(key)

    with _put_on(
        module.register_forward_pre_hook(partial(call, key), prepend=True)
        for key, module in modules
    ):
        yield


@contextmanager
def hook_inputs(
    modules: Mapping[KeyT, nn.Module], function: Callable[[KeyT, Tensor], None]
) -> Iterator[None]:
    """Show a function what enters each of these modules, e.g. linear layers; it changes nothing.

    Args:
        modules: Key -> module; keys may share a module.
        function: Gets the module's key and its first argument, (batch, rows, width).
    """
    with _put_on(
        module.register_forward_pre_hook(
            lambda _, positional, named, key=key: function(key, _first_argument(positional, named)),
            with_kwargs=True,
        )
        for key, module in modules.items()
    ):
        yield


@contextmanager
def hook_outputs(
    modules: Mapping[KeyT, nn.Module], function: Callable[[KeyT, Tensor], None]
) -> Iterator[None]:
    """Show a function what each of these modules returns; it changes nothing.

    Args:
        modules: Key -> module; keys may share a module.
        function: Gets the module's key and its output, (batch, rows, width), or the first of
            several outputs.
    """
    with _put_on(
        module.register_forward_hook(lambda _, __, output, key=key: function(key, _first(output)))
        for key, module in modules.items()
    ):
        yield


@contextmanager
def hook_second_outputs(
    modules: Mapping[KeyT, nn.Module], function: Callable[[KeyT, Tensor], None]
) -> Iterator[None]:
    """Show a function the second output of each module, such as the weights of eager attention."""
    with _put_on(
        module.register_forward_hook(lambda _, __, outputs, key=key: function(key, outputs[1]))
        for key, module in modules.items()
    ):
        yield


@contextmanager
def hook_output(module: nn.Module, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a module return a function of its input instead of its own output."""
    with _put_on([module.register_forward_hook(lambda _, positional, __: function(positional[0]))]):
        yield


@contextmanager
def hook_result(module: nn.Module, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a function of a module's output leave the module instead of the output."""
    with _put_on([module.register_forward_hook(lambda _, __, output: function(output))]):
        yield


@contextmanager
def hook_stream(layer: nn.Module, function: Work) -> Iterator[None]:
    """Let a function of the residual stream enter a decoder layer instead of the stream itself."""
    with _put_on([layer.register_forward_pre_hook(partial(_enter, function), with_kwargs=True)]):
        yield


@contextmanager
def hook_in_layers(layers: Mapping[int, nn.Module], function: InsteadOfLayer) -> Iterator[None]:
    """Let decoder layers compute something else. Unlike with a hook, their own work is not done.

    A layer that checkpoints its activations still does so, with what it computes now; this is
    computed again in the backward pass, which may come after the `with` block.

    Args:
        layers: Index -> decoder layer.
        function: Called before the layer would run, with the layer's index, the layer, the residual
            stream that enters it, (batch, rows, width), and the layer's other arguments, all by
            keyword. Returns a function from the entering to the leaving stream, or None for the
            layer's own forward.
    """
    before: list[tuple[nn.Module, dict[str, Any]]] = []
    try:
        for index, layer in layers.items():
            own = {name: value for name, value in layer.__dict__.items() if name in _EXCHANGED}
            before.append((layer, own))
            checkpointing = bool(getattr(layer, "gradient_checkpointing", False))
            layer.__dict__["forward"] = InsteadForward(
                _run_instead, function, index, layer, layer.forward, checkpointing
            )
            if checkpointing:
                layer.__dict__["gradient_checkpointing"] = False  # `_run_instead` does it
        yield
    finally:
        for layer, own in reversed(before):
            for name in _EXCHANGED:
                layer.__dict__.pop(name, None)
            layer.__dict__.update(own)


@contextmanager
def _put_on(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Keep hooks while the block lasts; if one can't be put on, those before it are removed too."""
    kept: list[RemovableHandle] = []
    try:
        kept.extend(handles)
        yield
    finally:
        for handle in kept:
            handle.remove()


def _call(
    function: BeforeLayer,
    index: int,
    module: nn.Module,
    positional: tuple[Any, ...],
    keywords: Arguments,
) -> tuple[tuple[Any, ...], Arguments] | None:
    hidden, others = _split_arguments(module, positional, keywords)
    changed = function(index, hidden, others)
    return None if changed is None else ((hidden,), changed)


def _enter(
    function: Work, module: nn.Module, positional: tuple[Any, ...], keywords: Arguments
) -> tuple[tuple[Any, ...], Arguments]:
    hidden, others = _split_arguments(module, positional, keywords)
    return (function(hidden),), others


def _run_instead(
    function: InsteadOfLayer,
    index: int,
    layer: nn.Module,
    own: Callable[..., Tensor],
    checkpointing: bool,
    *positional: Any,
    **keywords: Any,
) -> Tensor:
    hidden, others = _split_arguments(layer, positional, keywords)
    work = function(index, layer, hidden, others)
    if not checkpointing:
        return own(hidden, **others) if work is None else work(hidden)
    if work is None:
        layer.__dict__["gradient_checkpointing"] = True  # for its own forward
        try:
            return own(hidden, **others)
        finally:
            layer.__dict__["gradient_checkpointing"] = False
    if layer.training:
        checkpoint: Any = layer._gradient_checkpointing_func
        output: Tensor = checkpoint(work, hidden)
        return output
    return work(hidden)


def _split_arguments(
    layer: nn.Module, positional: tuple[Any, ...], keywords: Arguments
) -> tuple[Tensor, Arguments]:
    """Return the residual stream and the other arguments of a layer's call, all by keyword."""
    others = dict(keywords)
    if not positional:
        return others.pop("hidden_states"), others
    if len(positional) > 1:  # Gemma 4's inputs of each layer
        _, _, *names = signature(type(layer).forward).parameters
        others |= zip(names, positional[1:], strict=False)
    return positional[0], others


def _first_argument(positional: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    first: Tensor = positional[0] if positional else next(iter(named.values()))
    return first


def _first(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first
