"""Refuses numbers of samples that are not finite: the largest of several NaN would be the first."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_mllm.errors import NotFiniteError


def check_finite(
    numbers: Tensor,
    sample_ids: Sequence[str],
    what: str,
    way_out: str = "use an earlier checkpoint, or model.dtype bfloat16 or float32",
) -> None:
    """Refuse what a model computes for some samples, if it is NaN or infinite for one of them.

    Args:
        numbers: (samples, ...).
        sample_ids: Id of each sample.
        what: What the numbers are, for the message, e.g. "The model's logits".
        way_out: What to do about it, for the message.

    Raises:
        NotFiniteError: A number is not finite.
    """
    broken = ~numbers.isfinite().reshape(len(numbers), -1).all(dim=1)
    if broken.any():
        row = int(broken.int().argmax())
        raise NotFiniteError(
            f"{what} are NaN or infinite for {int(broken.sum())} of {len(broken)} samples, first "
            f"for {sample_ids[row]!r}. The model has diverged, or its dtype overflows: "
            f"{way_out}."
        )
