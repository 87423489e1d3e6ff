"""A model on several devices: each layer of the LLM lies, and computes, on one of them.

Only layers of the LLM are given away. All else - vision tower, projector, embeddings, final norm,
head - is on the *main* device, and whatever a layer or a module in it returns comes back to where
its input was. So code outside of the layers has its tensors on one device, whoever calls a layer.
Moving is the work of accelerate's hooks, which transformers puts on while it loads the weights.

A layer on the disk, or in the CPU's memory beside a GPU, is *offloaded*: its weights are copied to
the main device while one of its modules computes, and elsewhere they are without data.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel
from transformers.integrations.accelerate import load_offloaded_parameter

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.free_memory import free_memory

DeviceMap = Literal["auto"] | dict[str, int]
Where = int | str  # number of a GPU, "cpu" or "disk", as transformers has it

_USED = 0.8  # share of a device's free memory that weights may take; the rest is for activations
_OFFLOADED = ("cpu", "disk")  # beside a GPU; with none, the CPU computes itself

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """Where the parts of a model lie.

    Attributes:
        device_map: `auto`, or device -> number of its layers, in the order of the layers.
        main: Where all else is.
        processes: How many processes of this machine share its GPUs.
    """

    device_map: DeviceMap
    main: torch.device
    processes: int = 1


def plan_placement(
    config: PretrainedConfig, placement: Placement, dtype: torch.dtype
) -> dict[str, Where]:
    """Decide on which device each layer of the LLM lies.

    Args:
        config: The checkpoint's.
        placement: What was asked for.
        dtype: Dtype of the weights.

    Returns:
        Name of a module or parameter -> device, as `from_pretrained` takes it.

    Raises:
        ConfigError: A device is unknown, the numbers are not those of the model's layers, or what
            is on the main device does not fit it.
    """
    device_map, main = placement.device_map, placement.main
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    names = {id(module): name for name, module in model.named_modules()}
    layers = [names[id(layer)] for layer in model.get_decoder().layers]
    first = main.index or 0 if main.type == "cuda" else main.type
    if device_map == "auto":
        size = _count_elements(model.get_decoder().layers[0]) * dtype.itemsize
        rest = (_count_elements(model) * dtype.itemsize) - len(layers) * size
        counts = share_layers(len(layers), size, rest, _free_of_devices(placement))
    else:
        counts = _check_device_map(device_map, len(layers))
    placed: dict[str, Where] = dict.fromkeys(_names_of_rest(model, layers), first)
    waiting = iter(layers)
    for device, count in counts.items():
        for _ in range(count):
            placed[next(waiting)] = device
    logger.info("The LLM's layers are on %s.", _describe_counts(counts))
    if slow := [name for name in _OFFLOADED if counts.get(name) and name != main.type]:
        logger.warning(
            "%d of the LLM's %d layers do not lie where they compute (%s): their weights are "
            "copied each time the model runs, which is slow.",
            sum(counts[name] for name in slow),
            len(layers),
            " and ".join(slow),
        )
    return placed


def place_evaluated(module: Any, device: torch.device) -> Placement | None:
    """Return where the model of a module is to lie; None if on one device.

    Args:
        module: The `MLLMModule`.
        device: That of the process.

    Raises:
        ConfigError: It is to lie on several devices, and to be trained, sharded or compiled.
    """
    if module.device_map is None:
        return None
    trainer = module._trainer
    if trainer is not None and (trainer.state.fn == "fit" or getattr(trainer, "will_fit", False)):
        refuse_placed_fit()
    if trainer is not None and getattr(trainer.strategy, "sharding", None) is not None:
        raise ConfigError(
            "trainer.strategy fsdp2 and model.device_map both divide the model. Leave one out."
        )
    if module.compile_model:
        raise ConfigError(
            "model.compile and model.device_map do not go together: compiled code would not move "
            "its inputs from device to device. Leave one of them out."
        )
    processes = 1 if trainer is None else trainer.num_devices
    named = () if module.device_map == "auto" else module.device_map
    if processes > 1 and any(name.startswith("cuda") for name in named):
        raise ConfigError(
            f"model.device_map names GPUs, and {processes} processes of this machine would put "
            "their layers onto the same ones. Set model.device_map to auto, which divides the GPUs "
            "among them, or trainer.devices to 1."
        )
    return Placement(module.device_map, device, processes)


def refuse_placed_fit() -> NoReturn:
    """Refuse to train a model that lies on several devices.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError(
        "model.device_map shares a model among devices for evaluation and analysis; it can't be "
        "trained so. Leave model.device_map out; to train what one device can't hold, set "
        "--trainer.strategy fsdp2."
    )


def share_layers(count: int, size: int, rest: int, free: Mapping[Where, int]) -> dict[Where, int]:
    """Share equal layers among devices so that all are filled alike; GPUs before CPU and disk.

    Args:
        count: Number of layers.
        size: Bytes of a layer.
        rest: Bytes of what is not a layer.
        free: Device -> free bytes; the main device is the first.

    Returns:
        Device -> number of its layers; what fits nowhere is on the disk.

    Raises:
        ConfigError: The rest does not fit the main device.
    """
    room = {device: int(_USED * each) for device, each in free.items()}
    main = next(iter(room))
    if rest + size > room[main]:  # one layer comes there to compute
        raise ConfigError(
            f"What is not a layer of the LLM takes {rest / 2**30:.1f} GiB, and one layer "
            f"{size / 2**30:.1f} more, but {main!r} has room for {room[main] / 2**30:.1f} GiB. "
            "Choose a smaller model.dtype, or another device."
        )
    used = dict.fromkeys(room, 0)
    used[main] = rest
    counts: dict[Where, int] = dict.fromkeys([*room, "cpu", "disk"], 0)
    computing = [device for device in room if device != "cpu" or device == main]
    for _ in range(count):
        fitting = [device for device in computing if used[device] + size <= room[device]]
        device: Where = min(fitting, key=lambda each: used[each] / room[each], default="disk")
        if device == "disk" and "cpu" in room and used["cpu"] + size <= room["cpu"]:
            device = "cpu"
        used[device] = used.get(device, 0) + size
        counts[device] += 1
    return {device: number for device, number in counts.items() if number}


@contextmanager
def placing_quietly() -> Iterator[None]:
    """Leave out what accelerate says of offloaded weights and of parameters outside of modules."""
    accelerate = logging.getLogger("accelerate.big_modeling")
    with ExitStack() as quiet:
        quiet.callback(accelerate.setLevel, accelerate.level)
        accelerate.setLevel(logging.ERROR)
        quiet.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "The following device_map keys do not match")
        yield


def return_to_caller(model: PreTrainedModel) -> None:
    """Let all modules of placed layers return their output to where their input was."""
    for layer in model.get_decoder().layers:
        for module in layer.modules():
            hook: Any = getattr(module, "_hf_hook", None)
            for each in getattr(hook, "hooks", (hook,)):
                if hasattr(each, "io_same_device"):
                    each.io_same_device = True


def read_parameter(model: Any, name: str, parameter: Tensor) -> Tensor:
    """Return the values of a parameter, also of an offloaded one.

    Args:
        model: The Hugging Face model.
        name: Name in `model.named_parameters()`.
        parameter: The parameter of that name.
    """
    if parameter.device.type != "meta":
        return parameter.detach()
    return load_offloaded_parameter(model, name)


def find_offloaded(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and parameter of the weights that are offloaded; none if all are without data."""
    if model.device.type == "meta":  # what is planned, as a fit's memory: nothing is loaded
        return
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":
            yield name, parameter


def layer_device(layer: nn.Module) -> torch.device:
    """Return where a layer computes, which keeps its keys and values."""
    hook: Any = getattr(layer, "_hf_hook", None)
    device: Any = getattr(hook, "execution_device", None)
    if device is None:
        return next(layer.parameters()).device
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def _names_of_rest(model: nn.Module, layers: Sequence[str]) -> Iterator[str]:
    """Yield names of modules and parameters that together hold all but the layers."""
    above = layers[0].rpartition(".")[0]  # the list of layers
    around = ["", *accumulate(above.split("."), "{}.{}".format)]
    for name in around:
        module = model.get_submodule(name)
        prefix = f"{name}." if name else ""
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for each, _ in (*own, *module.named_children()):
            if prefix + each not in around and prefix + each not in layers:
                yield prefix + each


def _count_elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _free_of_devices(placement: Placement) -> dict[Where, int]:
    """Return the free bytes of this process's devices, the main one first.

    The GPUs of a machine are divided among its processes.
    """
    main, processes = placement.main, placement.processes
    if main.type != "cuda":
        return {main.type: free_memory(main)}
    own = (main.index or 0) % processes
    found: dict[Where, int] = {}
    for number in sorted(range(torch.cuda.device_count()), key=lambda each: each != main.index):
        if number % processes == own:
            found[number] = free_memory(torch.device("cuda", number))
    found["cpu"] = free_memory(torch.device("cpu"))
    return found


def _check_device_map(device_map: Mapping[str, int], count: int) -> dict[Where, int]:
    """Return device -> number of layers, with GPUs by their number."""
    counts: dict[Where, int] = {}
    for name, number in device_map.items():
        kind, _, index = name.partition(":")
        gpus = torch.cuda.device_count() if kind == "cuda" else 0
        if name not in _OFFLOADED and not (index.isdigit() and int(index) < gpus):
            raise ConfigError(
                f"model.device_map names {name!r}, which is not here. Expected auto, or the number "
                "of layers of each of: "
                f"{', '.join([f'cuda:{each}' for each in range(torch.cuda.device_count())])}"
                f"{', ' if torch.cuda.device_count() else ''}cpu, disk."
            )
        counts[name if name in _OFFLOADED else int(index)] = number
    if sum(counts.values()) != count or min(counts.values()) < 0:
        raise ConfigError(
            f"model.device_map places {sum(counts.values())} layers, but the LLM has {count}. Name "
            "the number of layers of each device, or auto."
        )
    return counts


def _describe_counts(counts: Mapping[Where, int]) -> str:
    parts = []
    for device, number in counts.items():
        name = f"cuda:{device}" if isinstance(device, int) else device
        parts.append(f"{name} ({number})")
    return ", ".join(parts)
