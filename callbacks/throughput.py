"""Logs how fast the training is and how much memory it takes."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import lightning as L
import torch

from lightning_mllm.batches import MultimodalBatch

_MEBIBYTE = 2**20


class Throughput(L.Callback):
    """Logs samples/s, tokens/s (without padding, over all processes) and peak memory in MiB.

    Time spent in validation does not count. On a GPU the numbers are right without waiting for the
    device at each step: reading the token count at the end of the window waits once.

    Args:
        every_n_steps: Length of the window, in batches, over which the rates are averaged.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self._restart()

    def _restart(self) -> None:
        self._started: float | None = None
        self._batches = self._samples = 0
        self._tokens = torch.zeros((), dtype=torch.int64)

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: MultimodalBatch,
        batch_idx: int,
    ) -> None:
        """Start a window, unless one is open."""
        if self._started is None:
            self._tokens = torch.zeros((), dtype=torch.int64, device=pl_module.device)
            self._started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: MultimodalBatch,
        batch_idx: int,
    ) -> None:
        """Count the batch, and log at the end of the window."""
        self._batches += 1
        self._samples += len(batch)
        self._tokens += batch.attention_mask.sum()
        if self._batches < self.every_n_steps or self._started is None:
            return
        tokens = int(self._tokens)  # waits for the accelerator
        seconds = time.perf_counter() - self._started
        measured = (
            ("throughput/samples_per_s", "samples/s", self._samples / seconds, "sum"),
            ("throughput/tokens_per_s", "tokens/s", tokens / seconds, "sum"),
            ("throughput/peak_mib", "peak MiB", _peak_memory(pl_module.device), "max"),
        )
        for key, short, value, over_processes in measured:
            options: dict[str, Any] = {
                "batch_size": len(batch),
                "sync_dist": True,
                "reduce_fx": over_processes,
            }
            pl_module.log(key, value, **options)
            pl_module.log(short, value, prog_bar=True, logger=False, **options)
        self._restart()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the open window, which would include the validation."""
        self._restart()


def _peak_memory(device: torch.device) -> float:
    """Return the peak memory so far in MiB: allocated on a GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MEBIBYTE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MEBIBYTE if sys.platform == "darwin" else peak / 1024  # bytes or KiB
