"""The LLM with nothing but a sub-network, while a `with` block lasts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.subnetwork.matrices import matrices
from lightning_mllm.analysis.subnetwork.subnetwork import SubNetwork
from lightning_mllm.models.backbone import Backbone

logger = logging.getLogger(__name__)


@contextmanager
def pruned(backbone: Backbone, subnetwork: SubNetwork) -> Iterator[None]:
    """Let a model use nothing but a sub-network while the `with` block lasts.

    The weights themselves are not touched: the model gets pruned copies, and gets its own back at
    the end, also after an exception. What is trained inside the block in these matrices is lost
    with the copies; the rest may be trained. Blocks can be nested, and a matrix that several layers
    share keeps what all of their masks keep. If the sub-network is the whole model, a warning says
    so.

    Raises:
        ConfigError: The sub-network is that of a model of another size, or the model can't be
            pruned.
    """
    linear = matrices(backbone)
    subnetwork.check_fits(linear)
    if not subnetwork.sparsity:
        logger.warning(
            "Sub-network %r prunes nothing: each weight of the model is kept.", subnetwork.name
        )

    def masks() -> Iterator[tuple[nn.Linear, Tensor]]:
        for matrix, module in linear.items():
            yield module, subnetwork.kept(matrix, module.weight.device)

    with pruned_layers(masks()):
        yield


@contextmanager
def pruned_layers(layers: Iterable[tuple[nn.Linear, Tensor]]) -> Iterator[None]:
    """Set weights of linear layers to 0 while the `with` block lasts.

    Args:
        layers: Each linear layer, and which of its weights are kept, (out, in) bool.
    """
    own: dict[Tensor, Tensor] = {}
    try:
        for linear, kept in layers:
            weight: Tensor = linear.weight
            own.setdefault(weight, weight.data)
            with torch.inference_mode(False):  # such tensors could not be used in training
                weight.data = weight.data.masked_fill(~kept, 0)
        torch.clear_autocast_cache()  # its 16-bit copies of trained weights would be used
        yield
    finally:
        for weight, data in own.items():
            # the same tensor, unless the model was moved inside the block
            weight.data = data.to(weight.device, weight.dtype)
        torch.clear_autocast_cache()
