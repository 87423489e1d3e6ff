"""Which of a fit's checkpoints is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lightning_mllm.errors import ConfigError

_LOWER = ("loss", "invalid_rate")  # ends of the names of metrics that are better when lower
_HIGHER = ("accuracy", "f1", "exact_match")


@dataclass
class BestMetric:
    """The best value of a metric so far.

    Attributes:
        name: Name of the metric, as it is logged.
        mode: Whether the lowest or the highest value is the best.
        value: The best value; None before the first.
        step: Optimiser steps that the model with this value has had.
    """

    name: str
    mode: Literal["min", "max"]
    value: float | None = None
    step: int = 0

    @classmethod
    def of(cls, option: str) -> BestMetric:
        """Return the metric that an option names, e.g. `val/loss`, or `val/my_score:max`.

        Raises:
            ConfigError: The name does not say whether lower or higher is better.
        """
        name, _, mode = option.partition(":")
        if mode == "min" or (not mode and name.endswith(_LOWER)):
            return cls(name, "min")
        if mode == "max" or (not mode and name.endswith(_HIGHER)):
            return cls(name, "max")
        raise ConfigError(
            f"checkpointing.best is {option!r}, which does not say whether lower or higher is "
            f"better. Write {name}:min or {name}:max."
        )

    def take(self, value: float, step: int) -> bool:
        """Return whether a value is better than all before it, and remember it if it is."""
        if math.isnan(value):
            return False
        better = self.value is None or (
            value < self.value if self.mode == "min" else value > self.value
        )
        if better:
            self.value, self.step = value, step
        return better

    def value_in(self, metrics: Mapping[str, Any]) -> float:
        """Return the metric's value among those of a validation.

        Raises:
            ConfigError: It is not there.
        """
        if self.name not in metrics:
            known = ", ".join(sorted(name for name in metrics if "/" in name)) or "none"
            raise ConfigError(
                f"checkpointing.best is {self.name!r}, which is no metric of the validation. "
                f"There are: {known}."
            )
        return float(metrics[self.name])
