"""Shows before training what is frozen, and proves after it that it stayed so."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
import torch
from torch import Tensor, nn

from lightning_mllm.callbacks.trainer_state import trainer_mllm
from lightning_mllm.models.shard_values import first_local_index, local_values, sum_over_shards
from lightning_mllm.progress import console
from lightning_mllm.tracking.loggers import log_config

_CHUNK = 2**22
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class FreezeAudit(L.Callback):
    """Logs the freeze report, and fails a fit that changed a single bit of a frozen parameter."""

    def __init__(self) -> None:
        self._before: dict[str, int] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the report and remember the frozen parameters."""
        report = trainer_mllm(pl_module).freeze_report
        if trainer.is_global_zero:
            console.print(report)
        log_config(trainer.loggers, {"freeze_report": report.as_dict()})
        self._before = freeze_checksums(pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the frozen parameters with those at the start.

        Raises:
            RuntimeError: A parameter frozen at the start has changed, or is not frozen now.
        """
        after = freeze_checksums(pl_module)
        before = self._before.items()
        changed = [name for name, checksum in before if after.get(name) != checksum]
        if changed:
            raise RuntimeError(
                f"{len(changed)} parameters that the freeze policy froze were changed or unfrozen "
                f"during the fit; the first is {changed[0]!r}. The trained model is not what its "
                "policy says. Look for code that writes weights, sets requires_grad or builds its "
                "own optimizer."
            )


def freeze_checksums(module: nn.Module) -> dict[str, int]:
    """Return name -> checksum of every parameter without requires_grad."""
    return checksums_of_tensors(
        {name: each for name, each in module.named_parameters() if not each.requires_grad}
    )


def checksums_of_tensors(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return name -> checksum of tensors on one device.

    A checksum is the sum of the raw values, read as integers and weighted by index, modulo 2**64.
    Any single change alters it, and so does swapping two different values. That of a sharded tensor
    is the same as of the whole one; all processes call this then.
    """
    if not tensors:
        return {}
    sums = []
    for tensor in tensors.values():
        sums.append(_checksum(local_values(tensor.detach()), first_local_index(tensor)))
    total = sum_over_shards(torch.stack(sums), tensors.values())
    return dict(zip(tensors, total.tolist(), strict=True))


def _checksum(tensor: Tensor, first: int) -> Tensor:
    """Return the sum of values of which the first has this index."""
    bits = tensor.flatten().view(_INTEGERS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    # in chunks, since an embedding would take gigabytes as int64
    for start in range(0, len(bits), _CHUNK):
        chunk = bits[start : start + _CHUNK].long()
        places = torch.arange(len(chunk), device=tensor.device) + (first + start)
        weights = places * 2 + 1  # odd: an even weight would lose the highest bit
        total += (chunk * weights).sum()
    return total
