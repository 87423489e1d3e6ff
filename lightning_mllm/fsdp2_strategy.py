"""`trainer.strategy fsdp2`: weights, gradients and optimiser states are divided among processes.

Checkpoints are those of one process: a file with the trained weights, from which a fit goes on
under any strategy and with any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from lightning_mllm.errors import ConfigError
from lightning_mllm.models import checkpoint as checkpoints
from lightning_mllm.models.shard_values import (
    clip_gradient_norm,
    local_values,
    shard_like,
    values_to_write,
)
from lightning_mllm.models.sharding import Sharding
from lightning_mllm.models.shards import find_shards

_TIMEOUT = timedelta(minutes=30)  # as in Lightning's other strategies


class FSDP2Strategy(ModelParallelStrategy):
    """Divides a model among all processes by torch's `fully_shard`; `fsdp2` by name.

    Args:
        evaluation: Whether each process holds the `whole` model outside of training steps, which is
            fast, or one decoder layer at a time (`sharded`), for models that do not fit.
        process_group_backend: Backend of torch.distributed; by default nccl on GPUs, gloo on CPUs.
        timeout: How long processes wait for each other.
    """

    def __init__(
        self,
        evaluation: Literal["whole", "sharded"] = "whole",
        process_group_backend: str | None = None,
        timeout: timedelta = _TIMEOUT,
    ) -> None:
        super().__init__(
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.evaluation = evaluation

    @property
    def sharding(self) -> Sharding | None:
        """How a model is loaded; None where there are no other processes."""
        if not torch.distributed.is_initialized() or self.world_size == 1:
            return None
        return Sharding(self.root_device, whole_evaluation=self.evaluation == "whole")

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Whether weights are loaded late; they are loaded as under any other strategy."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning restores the optimiser, once the model and the data are there."""
        return True

    def setup_environment(self) -> None:
        """Let all processes share one model."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()
        self.precision_plugin = ShardedPrecision()

    def setup(self, trainer: L.Trainer) -> None:
        """Make the optimisers.

        Raises:
            ConfigError: The model was loaded before there were other processes, so it is whole.
        """
        if self.world_size > 1 and find_shards(self.lightning_module) is None:
            raise ConfigError(
                "trainer.strategy fsdp2 found a model that was loaded before its processes were "
                "started, so each has all of it. Use an MLLMModule, and leave its "
                "configure_model() to the Trainer."
            )
        super().setup(trainer)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the trained weights, whole on the first process."""
        return Strategy.lightning_module_state_dict(self)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Put whole weights into the shards."""
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of an optimiser, whole on the first process."""
        state: dict[str, Any] = tree_map(values_to_write, Strategy.optimizer_state(self, optimizer))
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Put the whole states of a checkpoint into optimisers of shards."""
        states = checkpoint["optimizer_states"]
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(_shard_state(optimizer, state))

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint on the first process, as under any other strategy."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Open a checkpoint; its tensors stay in the file, of which each process takes its rows."""
        return checkpoints.load_training_checkpoint(Path(checkpoint_path), mapped=True)


class ShardedPrecision(Precision):
    """Completes the gradients after the backward pass, and clips shards beside whole tensors."""

    def backward(
        self, tensor: Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Run the backward pass; average the gradients of what each process has whole."""
        super().backward(tensor, model, optimizer, *args, **kwargs)
        if shards := find_shards(model):
            shards.average_loose_gradients()

    def clip_grad_by_value(self, optimizer: Optimizer, clip_val: int | float) -> None:
        """Clip each value of the gradients."""
        for gradient in self._gradients(optimizer):
            local_values(gradient).clamp_(-clip_val, clip_val)

    def clip_grad_by_norm(self, optimizer: Optimizer, clip_val: int | float) -> None:
        """Clip the norm of all gradients together."""
        clip_gradient_norm(list(self._gradients(optimizer)), clip_val)

    def _gradients(self, optimizer: Optimizer) -> Iterator[Tensor]:
        for parameter in self.main_params(optimizer):
            if parameter.grad is not None:
                yield parameter.grad


class GatherForEvaluation(L.Callback):
    """Makes a sharded model ready for whatever is not a training step, before other callbacks."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let a new command begin with shards."""
        if shards := find_shards(pl_module):
            shards.scatter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather."""
        if shards := find_shards(pl_module):
            shards.gather()

    on_fit_start = on_validation_start
    on_sanity_check_start = on_validation_start
    on_test_start = on_validation_start
    on_predict_start = on_validation_start

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Help processes that have one batch more than this one."""
        if shards := find_shards(pl_module):
            shards.end_regions()

    on_test_epoch_end = on_validation_epoch_end
    on_predict_epoch_end = on_validation_epoch_end

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Share out again."""
        if shards := find_shards(pl_module):
            shards.scatter()


def _shard_state(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return this process's part of the state of an optimiser, or of several in one."""
    if "parts" in state:
        parts = zip(optimizer.parts, state["parts"], strict=True)
        return {"parts": [_shard_state(part, own) for part, own in parts]}
    parameters: list[Tensor] = []
    for group in optimizer.param_groups:
        parameters += group["params"]
    sharded: dict[Any, Any] = {}
    for index, values in state["state"].items():
        own = parameters[index]
        sharded[index] = {name: shard_like(value, own) for name, value in values.items()}
    return {**state, "state": sharded}
