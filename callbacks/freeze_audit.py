"""Says what is frozen before training, and proves after it that it was."""

from __future__ import annotations

import lightning as L
import torch
from rich.console import Console
from torch import Tensor, nn

from lightning_mllm.callbacks import access
from lightning_mllm.tracking.log import log_config

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class FreezeAudit(L.Callback):
    """Shows and logs the freeze report, and fails a fit in which a frozen parameter changed by a single bit."""

    def __init__(self) -> None:
        self._before: dict[str, int] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the report and remember the frozen parameters."""
        report = access.mllm(pl_module).freeze_report
        if trainer.is_global_zero:
            Console().print(report)
        log_config(trainer.loggers, {"freeze_report": report.as_dict()})
        self._before = frozen_checksums(pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare.

        Raises:
            RuntimeError: A parameter that was frozen at the start is another now, or is not frozen any more.
        """
        after = frozen_checksums(pl_module)
        changed = [name for name, checksum in self._before.items() if after.get(name) != checksum]
        if changed:
            raise RuntimeError(
                f"{len(changed)} parameters that the freeze policy froze were changed or unfrozen during the fit, the "
                f"first is {changed[0]!r}. The trained model is not what its policy says; look for code that writes "
                "weights, sets requires_grad or builds its own optimizer."
            )


def frozen_checksums(module: nn.Module) -> dict[str, int]:
    """Return name -> checksum of every parameter without requires_grad: the sum of its raw bits read as integers."""
    frozen = {name: parameter for name, parameter in module.named_parameters() if not parameter.requires_grad}
    if not frozen:
        return {}
    sums = torch.stack([_bit_sum(parameter.detach()) for parameter in frozen.values()])
    return dict(zip(frozen, sums.tolist(), strict=True))


def _bit_sum(tensor: Tensor) -> Tensor:
    return tensor.view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)
