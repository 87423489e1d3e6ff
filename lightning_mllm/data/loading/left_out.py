"""What of a split's conversations is left out because it does not fit into the context."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lightning_mllm.data.loading.splits import Split
from lightning_mllm.data.text.fitting import Fitted

logger = logging.getLogger(__name__)


@dataclass
class LeftOut:
    """Counts what does not fit.

    Attributes:
        samples: How many samples are left out as a whole.
        conversations: How many samples lose their first exchanges.
        exchanges: How many exchanges these samples lose together.
        answers: How many samples have the end of their last answer cut off.
    """

    samples: int = 0
    conversations: int = 0
    exchanges: int = 0
    answers: int = 0

    def count(self, fitted: Fitted | None) -> None:
        """Count what is left of a sample; None where nothing is."""
        if fitted is None:
            self.samples += 1
            return
        self.conversations += fitted.exchanges > 0
        self.exchanges += fitted.exchanges
        self.answers += fitted.excess > 0

    def metrics(self, split: Split) -> dict[str, float]:
        """Return the counts by name; empty where nothing is left out."""
        if not (self.samples or self.exchanges or self.answers):
            return {}
        return {
            f"{split}/samples_left_out": float(self.samples),
            f"{split}/exchanges_left_out": float(self.exchanges),
            f"{split}/answers_truncated": float(self.answers),
        }

    def warn(self, split: Split, total: int, max_length: int) -> None:
        """Log what is left out of a split of `total` samples; nothing where all fits."""
        if self.metrics(split):
            logger.warning(
                "Not all of the %r split fits into max_length %d: of %d samples %d are left out, "
                "%d lose their first exchanges (%d in all), and %d have the end of their answer "
                "cut off. Raise max_length to keep more.",
                split,
                max_length,
                total,
                self.samples,
                self.conversations,
                self.exchanges,
                self.answers,
            )
