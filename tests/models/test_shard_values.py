"""Rows of a tensor on each process, without processes: by a backend of torch that sends nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_mllm.models.shard_values import (
    cast_parameter,
    clip_gradient_norm,
    copy_values,
    first_local_index,
    first_values,
    local_values,
    shard_like,
)

PROCESSES = 3


@contextmanager
def as_process(rank: int) -> Iterator[None]:
    dist.init_process_group("fake", rank=rank, world_size=PROCESSES, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def shard(values: torch.Tensor) -> torch.Tensor:
    """Return a tensor sharded as FSDP2 does it."""
    mesh = init_device_mesh("cpu", (PROCESSES,))
    return distribute_tensor(values, mesh, [Shard(0)], src_data_rank=None)


@pytest.mark.parametrize("shape", [(7, 2), (6,), (2, 3), (1, 4), (4, 2, 2)])
def test_the_rows_of_all_processes_are_the_tensor(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape)
    parts, firsts = [], []
    for rank in range(PROCESSES):
        with as_process(rank):
            reference = shard(values)
            found = shard_like(values, reference)
            assert isinstance(found, DTensor)
            assert (found.shape, found.stride()) == (values.shape, values.stride())
            assert torch.equal(found.to_local(), local_values(reference))
            parts.append(found.to_local())
            firsts.append(first_local_index(reference))

    assert torch.equal(torch.cat(parts), values)
    for part, first in zip(parts, firsts, strict=True):
        assert torch.equal(values.flatten()[first : first + part.numel()], part.flatten())


def test_a_whole_tensor_copied_into_shards_is_there() -> None:
    values = torch.randn(5, 2)
    for rank in range(PROCESSES):
        with as_process(rank):
            parameter = nn.Parameter(shard(torch.zeros(5, 2)))

            copy_values(parameter, values)

            assert torch.equal(local_values(parameter), local_values(shard(values)))


def test_what_is_not_of_the_shape_or_not_sharded_stays_as_it_is() -> None:
    step, whole = torch.tensor(3.0), torch.randn(4)

    assert shard_like(step, whole) is step
    assert shard_like(whole, torch.randn(4)) is whole
    with as_process(0):
        assert shard_like(step, shard(whole)) is step
        assert shard_like("text", shard(whole)) == "text"


def test_first_values_are_alone_so_that_nothing_else_is_sent() -> None:
    (found,) = first_values([torch.arange(100.0)], 16)

    assert torch.equal(found, torch.arange(16.0))
    assert found.untyped_storage().nbytes() == 16 * 4


def test_a_parameter_keeps_its_identity_in_another_dtype() -> None:
    with as_process(1):
        for values in (torch.randn(4, 2), shard(torch.randn(4, 2))):
            parameter = nn.Parameter(values.bfloat16())
            head, embedding = nn.Linear(2, 4), nn.Embedding(4, 2)
            head.weight = embedding.weight = parameter
            expected = local_values(parameter).detach().float()

            cast_parameter(parameter, torch.float32)

            assert head.weight is embedding.weight is parameter
            assert parameter.dtype == torch.float32
            assert torch.equal(local_values(parameter), expected)


@pytest.mark.parametrize("most", [0.1, 100.0])
def test_gradients_of_one_process_are_clipped_as_torch_clips_them(most: float) -> None:
    ours = [torch.randn(3, 2), torch.randn(5)]
    theirs = [nn.Parameter(torch.zeros_like(each)) for each in ours]
    for parameter, gradient in zip(theirs, ours, strict=True):
        parameter.grad = gradient.clone()

    norm = clip_gradient_norm(ours, most)

    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs, most))
    for parameter, gradient in zip(theirs, ours, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
