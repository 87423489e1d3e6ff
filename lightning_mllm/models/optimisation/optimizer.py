"""Makes the optimiser of a fit, and tells whether it is that of the run which the fit goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_mllm.errors import ConfigError

OptimizerFactory = Callable[[Iterable[Any], float], Optimizer]


def make_optimizer(
    factory: OptimizerFactory,
    groups: list[dict[str, Any]],
    rate: float,
    *,
    resumed: str | None = None,
) -> Optimizer:
    """Make an optimiser; on CUDA, those of torch take their step in one fused kernel.

    Without it torch makes a second copy of all trained weights in each step: 25 GiB for an LLM of
    7 billion parameters in float32. A config that says `fused` or `foreach` itself is followed.

    Args:
        factory: Makes the optimiser.
        groups: Parameter groups.
        rate: Learning rate of groups without one.
        resumed: `name_optimizer` of the run that the fit goes on with; None if there is none.

    Raises:
        ConfigError: That run had an optimiser of another class, whose states are of no use.
    """
    optimizer = factory(groups, rate)
    if resumed not in (None, name := name_optimizer(optimizer)):
        raise ConfigError(
            f"The run was trained with {resumed}, whose states {name} can't take over. Set "
            f"model.optimizer to {resumed} to go on; to train otherwise from its weights, "
            "`lightning export` the model and fit from the exported folder."
        )
    for group in optimizer.param_groups:
        is_open = "fused" in group and group["fused"] is group["foreach"] is None
        if is_open and _is_on_cuda(group["params"]):
            group["fused"] = True
    return optimizer


def name_optimizer(optimizer: Optimizer) -> str:
    """Return the class of an optimiser, as a config names it."""
    kind = type(optimizer)
    return f"{kind.__module__}.{kind.__qualname__}"


def steps_by_lists(group: dict[str, Any], device_type: str) -> bool:
    """Return whether torch updates all weights of a group at once, which takes a copy of them.

    Args:
        group: Parameter group of an optimiser of torch; others have no key `foreach`.
        device_type: Where the weights are; without a word from the user, torch does so on CUDA.
    """
    if "foreach" not in group or group.get("fused"):
        return False
    return bool(group["foreach"] or (group["foreach"] is None and device_type == "cuda"))


def make_probe_group(*weights: Tensor, **keys: Any) -> dict[str, Any]:
    """Return weights as a parameter group to try an optimiser on, with the keys that a fit's have.

    Args:
        weights: Values of the parameters.
        keys: Keys in place of these defaults.
    """
    group = {"name": "probe", "lr": 1e-3, "option": "llm", "matrices": False, **keys}
    return {**group, "params": [nn.Parameter(weight) for weight in weights]}


@contextmanager
def explaining_compilation() -> Iterator[None]:
    """Say what helps where torch can't compile, as optimisers of torchao have it do.

    Raises:
        ConfigError: It can't: a compiler is not there, or does not work.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__ != "torch._inductor.exc":
            raise
        raise ConfigError(
            f"torch can't compile here: {str(error).strip().splitlines()[0]}. What it compiles "
            "(the steps of torchao's optimisers, model.compile) needs a C++ compiler, and on a GPU "
            "Triton. Install them, or set TORCHDYNAMO_DISABLE=1, which runs it uncompiled and "
            "slower."
        ) from error


def _is_on_cuda(parameters: Iterable[Tensor]) -> bool:
    return all(each.device.type == "cuda" and each.is_floating_point() for each in parameters)
