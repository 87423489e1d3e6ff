"""Refuses scores from which nothing follows: the largest of numbers that are NaN is the first of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_mllm.errors import NotFiniteError


def check_finite(numbers: Tensor, sample_ids: Sequence[str], what: str) -> None:
    """Refuse what a model says of some samples, if it is NaN or infinite for one of them.

    Args:
        numbers: (batch, ...).
        sample_ids: Of the batch.
        what: The numbers are, for the message.

    Raises:
        NotFiniteError: They are not finite.
    """
    broken = ~numbers.isfinite().reshape(len(numbers), -1).all(dim=1)
    if broken.any():
        row = int(broken.int().argmax())
        raise NotFiniteError(
            f"{what} are NaN or infinite for {int(broken.sum())} of {len(broken)} samples of a batch, first for "
            f"{sample_ids[row]!r}: nothing follows from them. The model has diverged, or its dtype overflows: use an "
            "earlier checkpoint, or model.dtype bfloat16 or float32."
        )
