"""Muon for the weight matrices, AdamW for everything else, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer

from lightning_mllm.errors import ConfigError


class MuonAdamW(Optimizer):
    """Orthogonalises the steps of weight matrices (Muon, Jordan et al., 2024) and gives all else to AdamW.

    A model that learns from scratch needs fewer steps with it. Embeddings, the head, norms, vectors and convolutions
    are AdamW's. Both are torch's own; they share the parameter groups, so one schedule drives both.

    Args:
        params: Parameter groups, as `parameter_groups` makes them: those with `matrices` set are Muon's.
        lr: Rate of groups that have none of their own.
        matrix_scale: Rate of the matrices, in units of their group's; steps are scaled to AdamW's size (Moonshot's
            rule: 0.2 times the square root of the longer side).
        weight_decay: Of groups that have none of their own, for both.
        momentum: Muon's.
        betas: AdamW's.

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
            raise ConfigError("MuonAdamW needs the groups of `parameter_groups`, which say where matrices are.")
        groups = [{**group, "lr": group.get("lr", lr)} for group in given]
        for group in groups:
            group["lr"] *= matrix_scale if group["matrices"] else 1.0
        parts: list[tuple[type[Optimizer], bool, dict[str, Any]]] = [
            (Muon, True, {"momentum": momentum, "adjust_lr_fn": "match_rms_adamw"}),
            (AdamW, False, {"betas": tuple(betas), "fused": True}),
        ]
        self._parts: list[Optimizer] = []
        for optimizer, matrices, options in parts:
            own = [group for group in groups if group["matrices"] is matrices]
            if own:
                self._parts.append(optimizer(own, lr=lr, weight_decay=weight_decay, **options))  # type: ignore[call-arg]
        self._complete = False
        super().__init__([{"params": group["params"]} for group in groups], {})
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        self._complete = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse groups that come later: neither optimiser would know of them.

        Raises:
            ConfigError: Always, once the optimiser is made.
        """
        if self._complete:
            raise ConfigError("MuonAdamW takes all its parameter groups when it is made.")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Do one step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the states of both back."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]
