"""AdamW whose states are in the computer's memory; the only file that builds on torchao's offload.

It is imported when a config names its class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim import AdamW
from torchao.optim import (  # type: ignore[import-untyped]
    CPUOffloadOptimizer,
    _AdamW,
)

from lightning_mllm.errors import ConfigError


class OffloadedAdamW(CPUOffloadOptimizer):  # type: ignore[misc]  # torchao has no types
    """AdamW on the CPU for weights on a GPU: its states take no memory of the GPU.

    The step is slower: gradients go to the CPU, weights come back. It needs CUDA, and about 16
    bytes of the computer's memory for each trained weight in float32.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate of groups without one of their own.
        betas: Decay rates of the two moving averages.
        eps: Keeps the denominator above 0.
        weight_decay: Weight decay of groups without one of their own.
        bf16_stochastic_round: Whether weights in bfloat16 are rounded up or down by chance.

    Raises:
        ConfigError: There is no CUDA, or the weights are shared among processes.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bf16_stochastic_round: bool = False,
    ) -> None:
        if not torch.cuda.is_available():
            raise ConfigError(
                "OffloadedAdamW moves states from a GPU to the CPU, and there is no CUDA here. Use "
                "torch.optim.AdamW, or torchao.optim.AdamW8bit, whose states are a quarter."
            )
        groups = [each if isinstance(each, dict) else {"params": [each]} for each in params]
        for group in groups:
            if any(isinstance(each, DTensor) for each in group["params"]):
                raise ConfigError(
                    "OffloadedAdamW can't hold weights that fsdp2 shares among processes. Use "
                    "torch.optim.AdamW there."
                )
        own: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        if bf16_stochastic_round:
            super().__init__(groups, _AdamW, bf16_stochastic_round=True, **own)
        else:
            super().__init__(groups, AdamW, **own)
        self.bf16_stochastic_round = bf16_stochastic_round
        # Lightning asks for both; the states are those of the optimisers inside
        self.state: Any = {}
        self.defaults: dict[str, Any] = own

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step with the gradients as they are now.

        The base copies them in the backward pass, before they are clipped or averaged over
        processes.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.stream.synchronize()
        for parameter in self.queue:
            self.param_d2h_map[parameter].grad.copy_(parameter.grad)
        super().step()
        return loss
