import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_mllm.probing.probes.networks import (
    POST_PROJECTION,
    PRE_PROJECTION,
    SMALLEST,
    initial_network_weights,
    network_logits,
    network_parameter_count,
)


@pytest.mark.parametrize("classes", [4, 23, 47])
def test_networks_at_the_papers_widths_have_the_papers_parameter_counts(classes: int) -> None:
    assert POST_PROJECTION.sizes(4096, classes) == (4096, 2048, 1536, 1024, 512, 256, classes)
    assert (
        network_parameter_count(POST_PROJECTION.sizes(4096, classes)) == 13_767_936 + 257 * classes
    )
    assert PRE_PROJECTION.sizes(1024, classes) == (1024, 2000, 3600, 1024, 600, 256, classes)
    assert (
        network_parameter_count(PRE_PROJECTION.sizes(1024, classes)) == 13_709_880 + 257 * classes
    )


def test_hidden_layers_scale_with_the_width_down_to_the_smallest() -> None:
    assert POST_PROJECTION.sizes(1024, 10) == (1024, 512, 384, 256, 128, 64, 10)
    assert POST_PROJECTION.sizes(192, 10) == (192, 96, 72, 48, 24, SMALLEST, 10)


def test_each_network_starts_as_torch_linear_layers_drawn_with_its_generator() -> None:
    sizes = (6, 5, 3)

    weights = initial_network_weights(
        sizes, [torch.Generator().manual_seed(seed) for seed in (7, 8)], torch.float32
    )

    for model, seed in enumerate((7, 8)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(6, 5), nn.Linear(5, 3)]
        for number, layer in enumerate(layers):
            assert torch.equal(weights[2 * number][model], layer.weight.T)
            assert torch.equal(weights[2 * number + 1][model, 0], layer.bias)


def test_each_network_sees_its_own_samples_only() -> None:
    weights = initial_network_weights(
        (6, 5, 3), [torch.Generator().manual_seed(seed) for seed in (1, 2)], torch.float64
    )
    features = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    together = network_logits(weights, features)

    for model in range(2):
        first, first_bias, second, second_bias = (weight[model] for weight in weights)
        hidden = F.relu(features[model] @ first + first_bias)
        torch.testing.assert_close(together[model], hidden @ second + second_bias)
