from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_mllm.analysis.subnetwork.matrices import Matrix, matrices
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.freeze import Lora
from tests.support.decoders import LAYERS, make_backbone
from tests.support.questions import load
from tests.support.wanda_by_hand import SEVEN


@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2"])
def test_the_seven_matrices_of_every_block_are_pruned_and_nothing_else(
    tiny_llava: str, decoder: Any
) -> None:
    backbone = make_backbone(tiny_llava, decoder=decoder)

    found = matrices(backbone)

    assert set(found) == {Matrix(layer, name) for layer in range(LAYERS) for name in SEVEN}
    names = {id(module): name for name, module in backbone.model.named_modules()}
    for matrix, module in found.items():
        assert names[id(module)] == f"model.language_model.layers.{matrix}"


def test_a_matrix_is_found_again_by_its_text() -> None:
    assert Matrix.parse(str(Matrix(12, "self_attn.q_proj"))) == Matrix(12, "self_attn.q_proj")


def test_adapters_on_the_llm_are_refused_and_those_on_the_tower_are_not(tiny_llava: str) -> None:
    adapted, seeing = load(tiny_llava), load(tiny_llava)
    Lora(rank=2).apply(adapted)
    Lora(rank=2, target="vision").apply(seeing)

    with pytest.raises(
        ConfigError, match=r"LoRA adapters \(model\.language_model\.layers.*`lightning export`"
    ):
        matrices(adapted)
    assert len(matrices(seeing)) == 2 * len(SEVEN)


def test_quantised_weights_are_refused(tiny_llava: str) -> None:
    backbone = load(tiny_llava)
    module = matrices(backbone)[Matrix(1, "mlp.up_proj")]
    module.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)

    with pytest.raises(
        ConfigError, match=r"mlp\.up_proj of decoder layer 1 has weights of torch\.int8"
    ):
        matrices(backbone)


def test_a_block_without_linear_layers_is_refused(tiny_llava: str) -> None:
    backbone = load(tiny_llava)
    layers: Any = backbone.decoder.layers
    layers[1] = nn.Identity()

    with pytest.raises(ConfigError, match=r"layer 1, a Identity, has no nn\.Linear"):
        matrices(backbone)
