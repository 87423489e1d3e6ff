"""Tensors of which each process may have its own rows only, and whole ones, by the same functions.

`fully_shard` gives the processes equal numbers of rows, as `torch.chunk` does; the last ones may
have fewer, or none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def local_values(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def first_local_index(tensor: Tensor) -> int:
    """Return which of a tensor's values, in a row, is the first on this process."""
    if not isinstance(tensor, DTensor) or not len(tensor):
        return 0
    return min(_rows_before(tensor), len(tensor)) * (tensor.numel() // len(tensor))


def first_values(tensors: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return the first `count` values of each tensor, on the CPU; fewer if it has fewer.

    If one of the tensors is sharded, all processes call this.
    """
    heads = [local_values(each.detach()).flatten()[:count] for each in tensors]
    own = [head.to("cpu", copy=True) for head in heads]  # a slice is sent with its whole tensor
    sharded = [index for index, each in enumerate(tensors) if isinstance(each, DTensor)]
    if sharded:
        every: list[list[Tensor]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(every, [own[index] for index in sharded])
        for index, parts in zip(sharded, zip(*every, strict=True), strict=True):
            own[index] = torch.cat(parts)[:count]
    return own


def true_on_all(flags: Tensor, tensors: Iterable[Tensor]) -> Tensor:
    """Return which flags are set on all processes, if they are of tensors that are sharded.

    Args:
        flags: (tensors) bool, what this process found in its part of each.
        tensors: The tensors. If one of them is sharded, all processes call this.
    """
    if not any(isinstance(each, DTensor) for each in tensors):
        return flags
    numbers = flags.int()
    dist.all_reduce(numbers, dist.ReduceOp.MIN)
    return numbers.bool()


def sum_over_shards(sums: Tensor, tensors: Iterable[Tensor]) -> Tensor:
    """Add up over the processes what each found in its part of tensors, where they are sharded.

    Args:
        sums: (tensors), of each tensor what this process found.
        tensors: The tensors. If one of them is sharded, all processes call this.
    """
    sharded = [isinstance(each, DTensor) for each in tensors]
    if not any(sharded):
        return sums
    added = sums.clone()
    dist.all_reduce(added)
    return torch.where(torch.tensor(sharded, device=sums.device), added, sums)


def whole_values(tensor: Tensor) -> Tensor:
    """Return a tensor whole, on each process; for a sharded one, all processes call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def values_to_write(value: Any) -> Any:
    """Return a tensor whole on the first process, which writes it; others keep their part.

    For a sharded tensor, all processes call this. Anything else comes back as it is.
    """
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    return whole.cpu() if dist.get_rank() == 0 else value.to_local()


def _rows_before(reference: DTensor) -> int:
    """Return the first row of a tensor that this process would have if none had fewer rows."""
    mesh = reference.device_mesh
    return mesh.get_local_rank() * math.ceil(len(reference) / mesh.size())


def shard_like(value: Any, reference: Tensor) -> Any:
    """Return this process's rows of a whole tensor, as a tensor sharded as the reference is.

    What is not of the reference's shape, or no tensor, comes back as it is, and so does everything
    if the reference is whole. Nothing is sent.
    """
    if not isinstance(reference, DTensor) or not isinstance(value, Tensor):
        return value
    if value.shape != reference.shape:
        return value
    start = _rows_before(reference)
    rows = value[start : start + len(reference.to_local())].to(reference.device, copy=True)
    return DTensor.from_local(
        rows,
        reference.device_mesh,
        reference.placements,
        run_check=False,
        shape=reference.shape,
        stride=reference.stride(),
    )


@torch.no_grad()
def copy_values(parameter: Tensor, value: Tensor) -> None:
    """Write a whole tensor into a parameter that may be sharded."""
    local_values(parameter).copy_(local_values(shard_like(value, parameter)))


@torch.no_grad()
def cast_parameter(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    """Change the dtype of a parameter in place; it stays the same object, tied weights stay tied.

    For a sharded model, do so before `Shards` is made.
    """
    if not isinstance(parameter, DTensor):
        parameter.data = parameter.data.to(dtype)
    elif parameter.dtype != dtype:  # `.data` does not reach the shard
        made = nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)
        torch.utils.swap_tensors(parameter, made)


@torch.no_grad()
def clip_gradient_norm(gradients: Iterable[Tensor], most: float) -> Tensor:
    """Scale gradients, sharded ones and whole ones, so that their one norm is at most `most`.

    torch's own function refuses to mix the two. All processes call this.

    Returns:
        The norm before.
    """
    gradients = list(gradients)
    sharded = [each.to_local() for each in gradients if isinstance(each, DTensor)]
    square = torch.zeros((), device=gradients[0].device)
    if sharded:
        square = nn.utils.get_total_norm(sharded).square()
        dist.all_reduce(square)
    if whole := [each for each in gradients if not isinstance(each, DTensor)]:
        square += nn.utils.get_total_norm(whole).square()
    norm = square.sqrt()
    scale = (most / (norm + 1e-6)).clamp(max=1.0)  # as torch does it
    for each in gradients:
        local_values(each).mul_(scale)
    return norm
