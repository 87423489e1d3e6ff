from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mllm.analysis.hooks import before_layers


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


def test_the_function_sees_each_layer_and_changes_what_it_is_called_with(layers: dict[int, nn.Module]) -> None:
    seen = []

    def more(layer: int, hidden: Tensor, others: dict[str, Any]) -> dict[str, Any]:
        seen.append((layer, hidden.tolist(), others))
        return {"add": others["add"] + layer}

    with before_layers(layers, more):
        by_position = layers[3](torch.zeros(1), add=1.0)
        by_name = layers[5](hidden_states=torch.ones(1), add=2.0)

    assert (by_position.item(), by_name.item()) == (4.0, 8.0)
    assert seen == [(3, [0.0], {"add": 1.0}), (5, [1.0], {"add": 2.0})]


def test_a_function_that_returns_nothing_changes_nothing(layers: dict[int, nn.Module]) -> None:
    with before_layers(layers, nothing):
        assert layers[3](hidden_states=torch.ones(1), add=2.0).item() == 3.0


def test_no_hook_is_left_behind_also_nested(layers: dict[int, nn.Module]) -> None:
    with before_layers(layers, nothing):
        with before_layers({3: layers[3]}, nothing):
            assert hooks_of(layers) == [2, 1]
        assert hooks_of(layers) == [1, 1]

    assert hooks_of(layers) == [0, 0]


def test_no_hook_is_left_after_an_exception(layers: dict[int, nn.Module]) -> None:
    with pytest.raises(RuntimeError, match="inside"), before_layers(layers, nothing):
        raise RuntimeError("inside")

    assert hooks_of(layers) == [0, 0]


def test_no_hook_is_left_when_one_can_not_be_put_on(layers: dict[int, nn.Module]) -> None:
    broken: Any = {**layers, 7: None}

    with pytest.raises(AttributeError), before_layers(broken, nothing):
        pass

    assert hooks_of(layers) == [0, 0]
