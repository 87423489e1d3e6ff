"""Refuses options of Lightning's Trainer that would not do here what they say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO, Precision
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import Checkpoint, GradientAccumulationScheduler, ProgressBar
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lightning_mllm.errors import ConfigError, did_you_mean
from lightning_mllm.fsdp2_strategy import FSDP2Strategy
from lightning_mllm.option_lists import trainer_option_as_list

SHARDED = "fsdp2"  # name of `FSDP2Strategy`
# DDP in processes that run the whole program; forked ones would have to send the model back
_STRATEGIES = (
    *("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true"),
    SHARDED,
)
# first word of the names of strategies -> why they can't be right here
_WHY_REFUSED = {
    "fsdp": "it writes checkpoints of its own form, and runs backward passes past micro-batches",
    "deepspeed": (
        "its engine takes over backward passes and steps, which micro-batches, clipping and exact "
        "resuming have here, and it writes checkpoints as folders that nothing else opens"
    ),
    "modelparallelstrategy": "it exchanges no gradients of a model that is not sharded",
}


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Refuse options that have another place here, or would do something else.

    Raises:
        ConfigError: There is one.
    """
    _check_accelerator(options.get("accelerator"))
    if options.get("precision") not in (None, 32, "32", "32-true"):
        raise ConfigError(
            f"trainer.precision is {options['precision']!r}, but the module sets the precision: "
            "frozen weights are in model.dtype, trained ones in float32. Set model.dtype=bfloat16 "
            "and leave trainer.precision out."
        )
    if _accumulates(options):
        raise ConfigError(
            "trainer.accumulate_grad_batches would average batches with unequal numbers of answer "
            "tokens. Set batch_size of the data to the size of the whole step, and "
            "model.micro_batch_size to what fits into memory."
        )
    if options.get("use_distributed_sampler"):
        raise ConfigError(
            "trainer.use_distributed_sampler would put another sampler in place of the data's own, "
            "which divides each batch among processes and counts every sample once. Leave it out."
        )
    if options.get("barebones"):
        raise ConfigError(
            "trainer.barebones switches off logging, checkpoints and callbacks: a run would have "
            "no results. Leave it out; for a quick trial use trainer.fast_dev_run."
        )
    if options.get("val_check_interval") in (0, 0.0):
        raise ConfigError(
            "trainer.val_check_interval is 0; to fit without validation set "
            "trainer.limit_val_batches=0."
        )
    for plugin in trainer_option_as_list(options.get("plugins")):
        if isinstance(plugin, str | Precision | CheckpointIO):
            name = plugin if isinstance(plugin, str) else type(plugin).__name__
            raise ConfigError(
                f"trainer.plugins names {name}, but the module sets the precision, and a plugin of "
                "this package writes checkpoints atomically. Leave it out."
            )
    check_trainer_strategy(options.get("strategy") or "auto")


def find_usable_callbacks(options: Mapping[str, Any]) -> list[Any]:
    """Return the callbacks without those that other options switch off.

    Lightning would refuse a checkpoint callback or a bar where there is to be none; the default
    callbacks always have them.
    """
    callbacks = trainer_option_as_list(options.get("callbacks"))
    if options.get("enable_checkpointing") is False:
        callbacks = [each for each in callbacks if not isinstance(each, Checkpoint)]
    if options.get("enable_progress_bar") is False:
        callbacks = [each for each in callbacks if not isinstance(each, ProgressBar)]
    return callbacks


def _check_accelerator(accelerator: Any) -> None:
    """Refuse a GPU that is not there."""
    found = {"cuda": CUDAAccelerator.is_available(), "mps": MPSAccelerator.is_available()}
    found["gpu"] = any(found.values())
    if found.get(accelerator, True):
        return
    version = torch.__version__
    why = f"PyTorch {version} sees none: ask nvidia-smi, and look at CUDA_VISIBLE_DEVICES"
    if accelerator == "mps" or not torch.version.cuda:
        why = f"PyTorch {version} is not built for one or sees none"
    raise ConfigError(
        f"trainer.accelerator is {accelerator!r}, but there is no such device here ({why}). Set "
        "--trainer.accelerator cpu, or leave it out: auto takes what there is."
    )


def _accumulates(options: Mapping[str, Any]) -> bool:
    """Return whether gradients would be summed over batches."""
    if options.get("accumulate_grad_batches") not in (None, 1):
        return True
    callbacks = trainer_option_as_list(options.get("callbacks"))
    return any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks)


def check_trainer_strategy(strategy: Any) -> None:
    """Refuse untested strategies: some silently train another model than the one that is saved.

    Args:
        strategy: Name of a strategy, or the strategy itself.

    Raises:
        ConfigError: The strategy is not one of those that work.
    """
    if isinstance(strategy, str):
        works, name = strategy in _STRATEGIES, strategy
    elif type(strategy) is FSDP2Strategy:
        return
    elif type(strategy) is DDPStrategy:
        works = strategy._start_method == "popen"
        name = f"DDPStrategy(start_method={strategy._start_method!r})"
    else:
        works, name = isinstance(strategy, SingleDeviceStrategy), type(strategy).__name__
    if not works:
        why = "it was never tried, or would not train the model that is saved"
        for family, reason in _WHY_REFUSED.items():
            if name.lower().startswith(family):
                why = f"{reason}. To divide the weights among processes, use {SHARDED}"
        raise ConfigError(
            f"trainer.strategy {name} is not supported: {why}. Use "
            f"{', '.join(_STRATEGIES[:-1])} or {_STRATEGIES[-1]}, or one device; in a notebook, "
            "set trainer.devices=1, or use the command line for several."
            f"{did_you_mean(name, _STRATEGIES)}"
        )
