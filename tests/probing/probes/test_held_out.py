import pytest
import torch

from lightning_mllm.probing.probes.held_out import hold_out
from lightning_mllm.store.seeds import torch_generator


def test_parts_are_disjoint_complete_and_in_order() -> None:
    targets = torch.arange(40) % 4

    kept, held = hold_out(targets, 0.1, torch_generator(0, "slice"))

    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(40))
    assert kept.tolist() == sorted(kept.tolist())
    assert targets[held].bincount().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("size", "held_out"), [(1, 0), (2, 1), (10, 1), (20, 2), (100, 10)])
def test_each_class_keeps_a_sample_and_holds_out_its_share(size: int, held_out: int) -> None:
    targets = torch.tensor([1] * size + [0] * 10)

    _, held = hold_out(targets, 0.1, torch_generator(0, "slice"))

    assert int((targets[held] == 1).sum()) == held_out


def test_nothing_is_held_out_at_fraction_0() -> None:
    kept, held = hold_out(torch.arange(6) % 2, 0.0, torch_generator(0, "slice"))

    assert kept.tolist() == list(range(6))
    assert not held.numel()


def test_how_many_are_held_out_depends_on_class_sizes_alone() -> None:
    targets = torch.tensor([0] * 7 + [1] * 30 + [2])

    sizes = set()
    for seed in range(5):
        order = torch.randperm(38, generator=torch_generator(seed, "order"))
        sizes.add(len(hold_out(targets[order], 0.1, torch_generator(seed, "slice"))[1]))

    assert len(sizes) == 1
