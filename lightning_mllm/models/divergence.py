"""Stops a training at the first loss that is not finite, before a step is taken with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import NotFiniteError
from lightning_mllm.models.adapted import AdaptedModel
from lightning_mllm.models.shard_values import local_values, true_on_all

_NONE_HERE = ": that of 0"
_NAMED = 8  # samples, in a message
_SMALLER_STEPS = (
    "Lower model.learning_rates, or set trainer.gradient_clip_val, and go on from the last "
    "checkpoint, which is sound."
)


@dataclass(frozen=True)
class DivergenceWatch:
    """A loss on its way to the CPU; it is looked at after the backward pass began, without a wait.

    Attributes:
        batch: The samples of this process that the loss is of.
        value: The loss, on the CPU.
        arrived: Event after which `value` can be read; None if it can be read at once.
    """

    batch: MultimodalBatch
    value: Tensor
    arrived: torch.Event | None

    @classmethod
    def of(cls, loss: Tensor, batch: MultimodalBatch) -> DivergenceWatch:
        """Start to copy a loss to the CPU."""
        value = loss.detach().to("cpu", non_blocking=True)
        if loss.device.type == "cpu":
            return cls(batch, value, None)
        arrived = torch.Event(loss.device)
        arrived.record()
        return cls(batch, value, arrived)

    def check(self, adapted: AdaptedModel, where: str) -> None:
        """Refuse the loss if it is not finite.

        Args:
            adapted: The model that gave the loss.
            where: Where the loss was found, for the message, e.g. "of step 3".

        Raises:
            NotFiniteError: The loss is not finite. The message names the cause and what to do.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        if not self.value.isfinite():
            if adapted.shards is not None:
                adapted.shards.gather()  # the loss of a training step is that of all processes
            with torch.no_grad(), adapted.autocast(self.batch.input_ids.device.type):
                reason = _describe_weights(adapted) or _describe_samples(adapted, self.batch)
            error = NotFiniteError(f"The loss {where} is not finite{reason}")
            error.is_here = _NONE_HERE not in reason
            raise error


def _describe_weights(adapted: AdaptedModel) -> str:
    """Say which weights are not finite; nothing if all are."""
    broken = _names_not_finite(dict(adapted.backbone.parameters()))
    if trained := [name for name in broken if name in adapted.report.trainable_names]:
        return (
            f", and neither are {len(trained)} trained tensors, e.g. {trained[0]!r}: the step "
            f"before was too large. {_SMALLER_STEPS}"
        )
    if broken:
        return (
            f" because the checkpoint is not: {len(broken)} of its tensors have NaN or infinite "
            f"numbers, e.g. {broken[0]!r}. Load another checkpoint."
        )
    return ""


def _describe_samples(adapted: AdaptedModel, batch: MultimodalBatch) -> str:
    """Say which samples' loss is not finite."""
    broken = [one.sample_ids[0] for one in batch.split(1) if not adapted.loss(one).isfinite()]
    named = ", ".join(map(repr, broken[:_NAMED]))
    if len(broken) > _NAMED:
        named += ", ..."
    count = f": that of {len(broken)}" if broken else _NONE_HERE
    return (
        f"{count} of the {len(batch)} samples that this process has of the batch"
        f"{': ' if named else ''}{named}. The weights are finite. If only some samples are "
        "concerned, look at them or leave them out; else set model.dtype to float32. "
        f"{_SMALLER_STEPS}"
    )


def check_weights_for_divergence(weights: Mapping[str, Tensor], step: int) -> None:
    """Refuse to replace a sound checkpoint by weights that are not finite, on all processes.

    Args:
        weights: Name -> trained tensor.
        step: Step after which they are, for the message.

    Raises:
        NotFiniteError: A tensor has NaN or infinite numbers.
    """
    if broken := _names_not_finite(weights, on_all=True):
        raise NotFiniteError(
            f"After step {step} {len(broken)} trained tensors have NaN or infinite numbers, e.g. "
            f"{broken[0]!r}, so no checkpoint of them is written. {_SMALLER_STEPS}"
        )


def _names_not_finite(tensors: Mapping[str, Tensor], *, on_all: bool = False) -> list[str]:
    """Return the names of tensors with NaN or infinite numbers; the device is waited for once.

    Args:
        tensors: Name -> tensor, of which this process may have a shard.
        on_all: Whether the shards of all processes are looked at; then all call this.
    """
    if not tensors:
        return []
    local = map(local_values, tensors.values())
    finite = torch.stack([tensor.isfinite().all() for tensor in local])
    if on_all:
        finite = true_on_all(finite, tensors.values())
    return [name for name, good in zip(tensors, finite.tolist(), strict=True) if not good]
