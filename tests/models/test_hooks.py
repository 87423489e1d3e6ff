from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mllm.models.hooks import (
    hook_before_call,
    hook_before_layers,
    hook_in_layers,
    hook_inputs,
    hook_outputs,
    hook_stream,
)


class Layer(nn.Module):
    def forward(self, hidden_states: Tensor, add: float = 0.0) -> Tensor:
        return hidden_states + add


@pytest.fixture
def layers() -> dict[int, nn.Module]:
    return {3: Layer(), 5: Layer()}


def hooks_of(layers: dict[int, nn.Module]) -> list[int]:
    return [len(layer._forward_pre_hooks) for layer in layers.values()]


def nothing(layer: int, hidden: Tensor, others: dict[str, Any]) -> None:
    """Change nothing."""


def test_the_function_sees_each_layer_and_changes_what_it_is_called_with(
    layers: dict[int, nn.Module],
) -> None:
    seen = []

    def more(layer: int, hidden: Tensor, others: dict[str, Any]) -> dict[str, Any]:
        seen.append((layer, hidden.tolist(), others))
        return {"add": others["add"] + layer}

    with hook_before_layers(layers, more):
        by_position = layers[3](torch.zeros(1), add=1.0)
        by_name = layers[5](hidden_states=torch.ones(1), add=2.0)

    assert (by_position.item(), by_name.item()) == (4.0, 8.0)
    assert seen == [(3, [0.0], {"add": 1.0}), (5, [1.0], {"add": 2.0})]


def test_a_function_that_returns_nothing_changes_nothing(layers: dict[int, nn.Module]) -> None:
    with hook_before_layers(layers, nothing):
        assert layers[3](hidden_states=torch.ones(1), add=2.0).item() == 3.0


def test_no_hook_is_left_behind_also_nested(layers: dict[int, nn.Module]) -> None:
    with hook_before_layers(layers, nothing):
        with hook_before_layers({3: layers[3]}, nothing):
            assert hooks_of(layers) == [2, 1]
        assert hooks_of(layers) == [1, 1]

    assert hooks_of(layers) == [0, 0]


def test_no_hook_is_left_after_an_exception(layers: dict[int, nn.Module]) -> None:
    with pytest.raises(RuntimeError, match="inside"), hook_before_layers(layers, nothing):
        raise RuntimeError("inside")

    assert hooks_of(layers) == [0, 0]


def test_no_hook_is_left_when_one_can_not_be_put_on(layers: dict[int, nn.Module]) -> None:
    broken: Any = {**layers, 7: None}

    with pytest.raises(AttributeError), hook_before_layers(broken, nothing):
        pass

    assert hooks_of(layers) == [0, 0]


def test_observers_see_inputs_and_outputs_by_key_and_change_nothing() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return x + 1, None

    modules: dict[str, nn.Module] = {"plain": nn.Identity(), "two": Two()}
    seen: list[tuple[str, str, float]] = []

    with (
        hook_inputs(modules, lambda key, x: seen.append(("in", key, x.item()))),
        hook_outputs(modules, lambda key, x: seen.append(("out", key, x.item()))),
    ):
        kept, changed = modules["plain"](torch.ones(1)), modules["two"](torch.ones(1))[0]

    assert (kept.item(), changed.item()) == (1.0, 2.0)
    assert seen == [
        ("in", "plain", 1.0),
        ("out", "plain", 1.0),
        ("in", "two", 1.0),
        ("out", "two", 2.0),
    ]
    modules["plain"](torch.ones(1))
    assert len(seen) == 4


def test_what_enters_a_layer_can_be_exchanged_and_later_hooks_see_it(
    layers: dict[int, nn.Module],
) -> None:
    seen: list[float] = []

    with (
        hook_stream(layers[3], lambda hidden: hidden * 10),
        hook_before_layers({3: layers[3]}, lambda _, hidden, __: seen.append(hidden.item())),
    ):
        by_position, by_name = (
            layers[3](torch.ones(1), add=2.0),
            layers[3](hidden_states=torch.ones(1)),
        )

    assert (by_position.item(), by_name.item()) == (12.0, 10.0)
    assert seen == [10.0, 10.0]
    assert layers[3](torch.ones(1)).item() == 1.0


def test_a_call_is_seen_before_it_runs(layers: dict[int, nn.Module]) -> None:
    seen: list[dict[str, Any]] = []

    with hook_before_call(layers[3], seen.append):
        layers[3](torch.ones(1), add=2.0)

    assert seen == [{"add": 2.0}]


def test_a_replaced_layer_does_not_run_unless_it_is_asked_to(layers: dict[int, nn.Module]) -> None:
    def instead(index: int, layer: nn.Module, hidden: Tensor, others: dict[str, Any]) -> Any:
        return None if others["add"] else lambda stream: stream * index

    with hook_in_layers(layers, instead):
        with hook_in_layers({5: layers[5]}, lambda *_: lambda stream: stream - 1):
            inner = layers[5](torch.ones(1), add=0.0)
        replaced, own = (
            layers[5](torch.ones(1), add=0.0),
            layers[5](hidden_states=torch.ones(1), add=2.0),
        )

    assert (inner.item(), replaced.item(), own.item()) == (0.0, 5.0, 3.0)
    assert layers[5](torch.ones(1), add=0.0).item() == 1.0
    assert all("forward" not in layer.__dict__ for layer in layers.values())


def test_nothing_of_a_replacement_is_left_after_an_exception(layers: dict[int, nn.Module]) -> None:
    layers[3].gradient_checkpointing = True  # type: ignore[assignment]
    before = {name: value for name, value in layers[3].__dict__.items() if not name.startswith("_")}

    with pytest.raises(RuntimeError, match="inside"), hook_in_layers(layers, lambda *_: None):
        assert not layers[3].gradient_checkpointing
        raise RuntimeError("inside")

    assert {
        name: value for name, value in layers[3].__dict__.items() if not name.startswith("_")
    } == before
    assert "gradient_checkpointing" not in layers[5].__dict__
