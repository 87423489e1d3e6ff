"""How a probe's network is trained: the settings and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_mllm.errors import ConfigError

Preset = Literal["converging", "paper", "released-code"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Cross-entropy and Adam without weight decay, at a constant learning rate.

    The defaults are the paper's (Verma et al., ACL 2024, appendix A.2 and A.3), as far as it states
    them. It names early stopping on the loss, but not which loss, nor the patience or the largest
    number of epochs. Those are ours, and so is the slice of train on which the loss is computed.

    Attributes:
        batch_size: Samples per step; the last batch of an epoch may be smaller.
        learning_rate: Learning rate of Adam.
        max_epochs: Largest number of epochs.
        val_fraction: Fraction of each class of train that is held out for early stopping, never the
            only sample of a class. At 0 nothing is held out, all epochs are run and the last
            weights are kept.
        patience: Number of epochs without a lower loss on the held-out slice after which training
            stops; the weights with the lowest loss are kept.
        min_gain: How much lower a loss must be to count as lower; with separable classes it falls
            for ever.

    Raises:
        ConfigError: A number is out of its range.
    """

    batch_size: int = 128
    learning_rate: float = 1e-4
    max_epochs: int = 500
    val_fraction: float = 0.1
    patience: int = 20
    min_gain: float = 1e-4

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.batch_size, self.max_epochs, self.patience) < 1 or self.learning_rate <= 0:
            raise ConfigError(
                "batch_size, max_epochs, patience and learning_rate must be positive; found "
                f"{self}."
            )
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(
                f"val_fraction is {self.val_fraction}; it must be at least 0 and below 1."
            )

    def converged(self, epochs: int, best_epoch: int) -> bool | None:
        """Return whether early stopping ended the training; None without early stopping."""
        return epochs - best_epoch >= self.patience if self.val_fraction else None


PRESETS: dict[Preset, Training] = {
    # early stopping ends it, also where samples are few
    "converging": Training(batch_size=32, learning_rate=1e-3, max_epochs=2000),
    "paper": Training(),
    "released-code": Training(batch_size=32, learning_rate=1e-3, max_epochs=100, val_fraction=0.0),
}
