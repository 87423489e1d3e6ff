"""The classifiers that probes train, several at once: stacked weights and batched matrix products.

The weights of several networks of the same sizes are one list with two tensors per layer: (models,
in, out) and (models, 1, out). Models never mix: the outputs and gradients of each are those of the
network alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

SMALLEST = 16  # a hidden layer is not scaled below


@dataclass(frozen=True)
class NetworkLayout:
    """Hidden sizes for features of one width; for other widths they are scaled.

    Attributes:
        width: Width of the features for which the sizes are given.
        hidden: Sizes of the hidden layers, with ReLU after each.
    """

    width: int
    hidden: tuple[int, ...]

    def sizes(self, width: int, classes: int) -> tuple[int, ...]:
        """Return the sizes of all layers, input and output included, for features of `width`.

        A hidden size is size * width / self.width, rounded, and at least `SMALLEST`.
        """
        hidden = [max(SMALLEST, round(size * width / self.width)) for size in self.hidden]
        return (width, *hidden, classes)


# Verma et al., ACL 2024, appendix A.2; the sizes are those of the released `train_mlp.py`, for
# LLaVA-1.5-7B
POST_PROJECTION = NetworkLayout(4096, (2048, 1536, 1024, 512, 256))
PRE_PROJECTION = NetworkLayout(1024, (2000, 3600, 1024, 600, 256))


def network_parameter_count(sizes: Sequence[int]) -> int:
    """Return the number of weights and biases of a network with these layer sizes."""
    return sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))


def initial_network_weights(
    sizes: Sequence[int], generators: Sequence[torch.Generator], dtype: torch.dtype
) -> list[Tensor]:
    """Draw the weights of one network per generator, as `torch.nn.Linear` does, on the CPU.

    The weights of a network depend on its own generator only.

    Returns:
        Per layer (models, in, out) and (models, 1, out).
    """
    weights = []
    for inputs, outputs in pairwise(sizes):
        kernel = torch.empty(len(generators), outputs, inputs, dtype=dtype)
        bias = torch.empty(len(generators), 1, outputs, dtype=dtype)
        bound = 1 / math.sqrt(inputs)
        for model, generator in enumerate(generators):
            nn.init.kaiming_uniform_(kernel[model], a=math.sqrt(5), generator=generator)
            bias[model].uniform_(-bound, bound, generator=generator)
        weights += [kernel.transpose(1, 2).contiguous(), bias]
    return weights


def network_logits(weights: Sequence[Tensor], features: Tensor) -> Tensor:
    """Run every network on its own samples.

    Args:
        weights: See the module.
        features: (models, samples, width).

    Returns:
        (models, samples, classes).
    """
    hidden = features
    for layer in range(0, len(weights), 2):
        if layer:
            hidden = hidden.relu()
        hidden = torch.baddbmm(weights[layer + 1], hidden, weights[layer])
    return hidden
