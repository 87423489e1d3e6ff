"""Options of Lightning's Trainer that would do another thing here than they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.plugins import CheckpointIO, Precision
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lightning_mllm.errors import ConfigError

# DDP in processes that each run the whole program; those that are forked or spawned would have to send the model back
_STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of Lightning's Trainer that this package has in another place, or that would do something else.

    Raises:
        ConfigError: There is one.
    """
    if options.get("precision") not in (None, 32, "32", "32-true"):
        raise ConfigError(
            f"trainer.precision is {options['precision']!r}, but the module sees to precision itself: frozen weights "
            "are in model.dtype, trained ones in float32. Set model.dtype=bfloat16 and leave trainer.precision alone."
        )
    schedulers = [each for each in as_list(options.get("callbacks")) if isinstance(each, GradientAccumulationScheduler)]
    if options.get("accumulate_grad_batches") not in (None, 1) or schedulers:
        raise ConfigError(
            "trainer.accumulate_grad_batches would average batches of unequal numbers of answer tokens. Set the size "
            "of the whole step as batch_size of the data, and model.micro_batch_size to what fits into memory."
        )
    if options.get("use_distributed_sampler"):
        raise ConfigError(
            "trainer.use_distributed_sampler would put another sampler in the place of the data's own, which shares "
            "each batch over the processes and counts every sample once. Leave it out."
        )
    if options.get("barebones"):
        raise ConfigError(
            "trainer.barebones switches off logging, checkpoints and callbacks, of which results are made. Leave it "
            "out; for a quick trial use trainer.fast_dev_run."
        )
    if options.get("val_check_interval") in (0, 0.0):
        raise ConfigError("trainer.val_check_interval is 0; to fit without validation set trainer.limit_val_batches=0.")
    for plugin in as_list(options.get("plugins")):
        if isinstance(plugin, str | Precision | CheckpointIO):
            raise ConfigError(
                f"trainer.plugins names {plugin if isinstance(plugin, str) else type(plugin).__name__}, but the module "
                "sees to precision itself, and checkpoints are written atomically by a plugin of our own. Leave it out."
            )
    check_strategy(options.get("strategy") or "auto")


def check_strategy(strategy: Any) -> None:
    """Refuse what was not tried: some strategies train another model than the one that is saved, without a word.

    Raises:
        ConfigError: It is none of those that work.
    """
    if isinstance(strategy, str):
        fits, name = strategy in _STRATEGIES, strategy
    else:
        fits = isinstance(strategy, SingleDeviceStrategy) or (
            type(strategy) is DDPStrategy and strategy._start_method == "popen"
        )
        forked = type(strategy) is DDPStrategy
        name = f"DDPStrategy(start_method={strategy._start_method!r})" if forked else type(strategy).__name__
    if not fits:
        raise ConfigError(
            f"trainer.strategy {name} is not supported: it would not train the model that is saved, or was never "
            f"tried. Use {', '.join(_STRATEGIES[:-1])} or {_STRATEGIES[-1]}, or one device; in a notebook, set "
            "trainer.devices=1 or run several devices from the command line."
        )


def as_list(value: Any) -> list[Any]:
    """Return what may be one thing or several as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | Mapping) else [value]
