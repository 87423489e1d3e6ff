"""Muon for the weight matrices, AdamW for everything else, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer

from lightning_mllm.errors import ConfigError


class MuonAdamW(Optimizer):
    """Muon (Jordan et al., 2024) for weight matrices, with orthogonal steps; AdamW for the rest.

    A model that learns from scratch needs fewer steps with it. Embeddings, the head, norms, vectors
    and convolutions are optimised by AdamW. Both are torch's own; they share the parameter groups,
    so one schedule drives both.

    Args:
        params: Parameter groups from `scheduled_parameter_groups`; those with `matrices` set are
            for Muon.
        lr: Learning rate of groups without one of their own.
        matrix_scale: Factor on the learning rate of matrices. Their steps already have the size of
            AdamW's (Moonshot's rule: 0.2 times the square root of the longer side).
        weight_decay: Weight decay, in both optimisers, of groups without one of their own.
        momentum: Momentum of Muon.
        betas: Decay rates of AdamW's two moving averages.

    Attributes:
        parts: The two optimisers, or the one that is needed.

    Raises:
        ConfigError: No group says which of its parameters are matrices.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        matrix_scale: float = 1.0,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        given = list(params)
        if not all(isinstance(group, dict) and "matrices" in group for group in given):
            raise ConfigError(
                "MuonAdamW needs the groups of `scheduled_parameter_groups`, which say where "
                "matrices are."
            )
        groups = [{**group, "lr": group.get("lr", lr)} for group in given]
        for group in groups:
            group["lr"] *= matrix_scale if group["matrices"] else 1.0
        matrices = [group for group in groups if group["matrices"] is True]
        others = [group for group in groups if group["matrices"] is False]
        shared: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        self.parts: list[Optimizer] = []
        if matrices:
            size: Any = "match_rms_adamw"
            self.parts.append(Muon(matrices, momentum=momentum, adjust_lr_fn=size, **shared))
        if others:
            self.parts.append(AdamW(others, betas=(betas[0], betas[1]), fused=True, **shared))
        self._complete = False
        super().__init__([{"params": group["params"]} for group in groups], {})
        self.param_groups = self._all_groups()
        self._complete = True

    def _all_groups(self) -> list[dict[str, Any]]:
        groups = []
        for part in self.parts:
            groups += part.param_groups
        return groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse groups that are added later: neither optimiser would know of them.

        Raises:
            ConfigError: Always, once the optimiser is created.
        """
        if self._complete:
            raise ConfigError("MuonAdamW takes all its parameter groups when it is created.")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Take one step of both optimisers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both optimisers."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the states of both optimisers back."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self._all_groups()
