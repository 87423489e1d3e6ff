"""Stops a training at the first loss that is not finite, before a step is taken on it, and says what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mllm.errors import NotFiniteError
from lightning_mllm.models.adapted import AdaptedModel
from lightning_mllm.types import MultimodalBatch

_NAMED = 8  # samples, in a message
_SMALLER_STEPS = (
    "Lower model.learning_rates, or set trainer.gradient_clip_val, and go on from the last checkpoint, which is sound."
)


@dataclass(frozen=True)
class PendingLoss:
    """A loss on its way to the CPU: to look at it when the backward pass is under way costs no wait.

    Attributes:
        batch: What it is of, as far as this process has it.
        value: On the CPU.
        arrived: When it is there; None for one that was there from the start.
    """

    batch: MultimodalBatch
    value: Tensor
    arrived: torch.Event | None

    @classmethod
    def of(cls, loss: Tensor, batch: MultimodalBatch) -> PendingLoss:
        """Send a loss on its way."""
        value = loss.detach().to("cpu", non_blocking=True)
        if loss.device.type == "cpu":
            return cls(batch, value, None)
        arrived = torch.Event(loss.device)
        arrived.record()
        return cls(batch, value, arrived)

    def check(self, adapted: AdaptedModel, loss_of: Callable[[MultimodalBatch], Tensor], where: str) -> None:
        """Refuse the loss if it is not finite.

        Args:
            adapted: The model.
            loss_of: Computes the loss of some of the samples.
            where: It was found, for the message.

        Raises:
            NotFiniteError: It is not; the message says why, and what to do.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        if not self.value.isfinite():
            with torch.no_grad():
                reason = _broken_weights(adapted) or _broken_samples(self.batch, loss_of)
            raise NotFiniteError(f"The loss {where} is not finite{reason}")


def _broken_weights(adapted: AdaptedModel) -> str:
    """Say which weights are not finite; nothing if all are."""
    broken = _broken(dict(adapted.backbone.parameters()))
    if trained := [name for name in broken if name in adapted.report.trainable_names]:
        return (
            f", and neither are {len(trained)} trained tensors, e.g. {trained[0]!r}: the step before was too large. "
            f"{_SMALLER_STEPS}"
        )
    if broken:
        return (
            f" because the checkpoint is not: {len(broken)} of its tensors have NaN or infinite numbers, e.g. "
            f"{broken[0]!r}. Load another checkpoint."
        )
    return ""


def _broken_samples(batch: MultimodalBatch, loss_of: Callable[[MultimodalBatch], Tensor]) -> str:
    """Say of which samples the loss is not finite."""
    ids = [name for name, one in zip(batch.sample_ids, batch.split(1), strict=True) if not loss_of(one).isfinite()]
    named = ": ".join(filter(None, ["", ", ".join(map(repr, ids[:_NAMED])) + ", ..." * (len(ids) > _NAMED)]))
    return (
        f": that of {len(ids)} of the {len(batch)} samples that this process has of the batch{named}. The weights are. "
        "If only some samples are concerned, look at them or leave them out; else set model.dtype to float32. "
        f"{_SMALLER_STEPS}"
    )


def check_weights(weights: Mapping[str, Tensor], step: int) -> None:
    """Refuse to keep weights that are not finite in the place of a checkpoint that is sound.

    Raises:
        NotFiniteError: They are not.
    """
    if broken := _broken(weights):
        raise NotFiniteError(
            f"After step {step} {len(broken)} trained tensors have NaN or infinite numbers, e.g. {broken[0]!r}, so no "
            f"checkpoint of them is written. {_SMALLER_STEPS}"
        )


def _broken(tensors: Mapping[str, Tensor]) -> list[str]:
    if not tensors:
        return []
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()])
    return [name for name, good in zip(tensors, finite.tolist(), strict=True) if not good]
