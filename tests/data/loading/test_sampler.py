import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lightning_mllm.data.loading.lazy import LazySamples
from lightning_mllm.data.loading.loaders import BatchLoader, ResumableLoader
from lightning_mllm.data.loading.sample_sizes import SampleSize
from lightning_mllm.data.loading.sampler import GlobalBatchSampler
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import Sample

N = 22
SAMPLES = [Sample(id=str(k)) for k in range(N)]
SIZES = [SampleSize(str(k), images=k % 3, characters=7 * k % 11) for k in range(N)]


def sampler(training: bool = True, batch_size: int = 4, **options: Any) -> GlobalBatchSampler:
    return GlobalBatchSampler(SIZES, batch_size, training=training, **options)


def ids(items: Sequence[tuple[int, Sample]]) -> Any:
    """Stand in for a collator: a batch is its epoch and its samples' ids."""
    return [f"{epoch}:{sample.id}" for epoch, sample in items]


def loader(
    batch_sampler: GlobalBatchSampler | None = None, num_workers: int = 0
) -> ResumableLoader:
    return ResumableLoader(SAMPLES, ids, batch_sampler or sampler(), num_workers)


class TestBatches:
    @pytest.mark.parametrize("grouped", [True, False])
    def test_an_epoch_has_every_sample_once(self, grouped: bool) -> None:
        batches = sampler(group_by_length=grouped).global_batches(3)

        assert sorted(itertools.chain(*batches)) == list(range(N))
        assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 2]

    def test_the_order_depends_on_seed_and_epoch_alone(self) -> None:
        assert sampler().global_batches(1) == sampler().global_batches(1)
        assert sampler().global_batches(1) != sampler().global_batches(2)
        assert sampler().global_batches(1) != sampler(seed=1).global_batches(1)

    def test_without_reshuffling_epochs_are_alike(self) -> None:
        fixed = sampler(reshuffle=False)
        first = list(fixed)
        fixed.set_epoch(5)
        assert list(fixed) == first

    def test_groups_part_images_from_text_and_sort_by_length(self) -> None:
        batches = sampler(group_by_length=True, batch_size=2).global_batches(0)
        full = [
            batch for batch in batches if len({SIZES[index].images > 0 for index in batch}) == 1
        ]

        assert len(full) >= len(batches) - 1
        spread = [max(SIZES[i].images for i in b) - min(SIZES[i].images for i in b) for b in full]
        assert (
            sum(spread) <= 1
        )  # image counts differ within a batch only where the sorted list passes from 2 to 1

    def test_evaluation_keeps_the_order(self) -> None:
        evaluation = sampler(training=False)
        evaluation.set_epoch(4)
        assert list(itertools.chain(*evaluation)) == [(0, index) for index in range(N)]

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("world_size", [1, 2, 4])
    def test_the_length_is_the_number_of_batches(self, training: bool, world_size: int) -> None:
        for rank in range(world_size):
            part = sampler(training, rank=rank, world_size=world_size)
            assert len(part) == len(list(part))


class TestProcesses:
    def test_ranks_partition_each_global_batch(self) -> None:
        whole = list(sampler())
        parts = [list(sampler(rank=rank, world_size=2)) for rank in range(2)]

        assert [a + b for a, b in zip(*parts, strict=True)] == whole

    def test_in_training_all_ranks_take_the_same_number_of_steps(self) -> None:
        parts = [list(sampler(rank=rank, world_size=4)) for rank in range(4)]

        assert {len(part) for part in parts} == {6}
        assert all(batch for part in parts for batch in part)
        last = [index for part in parts for _, index in part[-1]]
        assert set(last) == set(
            sampler().global_batches(0)[-1]
        )  # two samples, repeated for four ranks
        assert len(last) == 4

    def test_in_evaluation_each_sample_is_counted_once(self) -> None:
        parts = [list(sampler(False, rank=rank, world_size=4)) for rank in range(4)]

        assert sorted(index for part in parts for batch in part for _, index in batch) == list(
            range(N)
        )

    @pytest.mark.parametrize("world_size", [1, 2, 4])
    @pytest.mark.parametrize("count", [18, 22, 30, 46])
    def test_in_evaluation_samples_that_follow_each_other_as_a_pair_stay_together(
        self, world_size: int, count: int
    ) -> None:
        owners: dict[int, int] = {}
        for rank in range(world_size):
            sizes = [SampleSize(str(k), images=0, characters=1) for k in range(count)]
            part = GlobalBatchSampler(sizes, 16, training=False, rank=rank, world_size=world_size)
            owners |= {index: rank for batch in part for _, index in batch}

        assert len(owners) == count
        assert all(owners[index] == owners[index + 1] for index in range(0, count, 2))

    def test_the_batch_size_must_be_shared_evenly(self) -> None:
        with pytest.raises(ConfigError, match="batch_size is 5, shared by 2 processes"):
            sampler(batch_size=5, world_size=2)


class TestResuming:
    @pytest.mark.parametrize(("done", "num_workers"), [(0, 0), (1, 0), (5, 0), (6, 0), (2, 1)])
    def test_the_remaining_batches_follow_and_then_whole_epochs(
        self, done: int, num_workers: int
    ) -> None:
        first = loader()
        first.batch_sampler.set_epoch(2)
        batches = iter(first)
        seen = [next(batches) for _ in range(done)]
        state = {**first.state_dict(), "epoch": 2}
        rest = list(batches)

        resumed = loader(num_workers=num_workers)
        resumed.load_state_dict(state)
        resumed.batch_sampler.set_epoch(2)

        assert list(resumed) == rest
        assert len(seen + rest) == len(resumed) == 6
        resumed.batch_sampler.set_epoch(3)
        assert len(list(resumed)) == 6

    def test_a_state_of_a_finished_epoch_leaves_the_next_whole(self) -> None:
        first = loader()
        list(first)

        resumed = loader()
        resumed.load_state_dict(first.state_dict())
        resumed.batch_sampler.set_epoch(1)

        assert len(list(resumed)) == 6

    @pytest.mark.parametrize(
        ("name", "other"),
        [
            ("batch_size was 4, is 2", loader(sampler(batch_size=2))),
            ("seed was 0, is 1", loader(sampler(seed=1))),
            ("group_by_length was False, is True", loader(sampler(group_by_length=True))),
            (
                "number_of_samples was 22, is 9",
                ResumableLoader(SAMPLES[:9], ids, GlobalBatchSampler(SIZES[:9], 4, training=True)),
            ),
            (
                "samples was ",
                ResumableLoader(
                    SAMPLES, ids, GlobalBatchSampler([*SIZES[1:], SIZES[0]], 4, training=True)
                ),
            ),
        ],
    )
    def test_a_place_among_other_batches_is_refused(
        self, name: str, other: ResumableLoader
    ) -> None:
        with pytest.raises(ConfigError, match=f"created with different settings: {name}"):
            other.load_state_dict(loader().state_dict())

    def test_an_iterator_made_before_the_epoch_is_set_is_of_that_epoch(self) -> None:
        resumable = loader()
        batches = iter(resumable)
        resumable.batch_sampler.set_epoch(7)
        first: Any = next(batches)
        assert first[0].startswith("7:")

    def test_loading_draws_nothing_from_the_global_random_state(self) -> None:
        before = torch.get_rng_state()
        list(loader())
        list(BatchLoader(SAMPLES, ids, sampler(training=False)))
        assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("num_workers", [0, 1])
class TestErrors:
    def test_of_a_sample_come_as_one_sentence(self, num_workers: int) -> None:
        def collate(items: Sequence[tuple[int, Sample]]) -> Any:
            raise DataError("Sample '3' is torn.", "torn")

        batches = BatchLoader(SAMPLES, collate, sampler(), num_workers)
        with pytest.raises(DataError) as caught:
            list(batches)
        assert (str(caught.value), caught.value.kind) == ("Sample '3' is torn.", "torn")

    def test_of_a_dataset_that_makes_samples_name_the_sample(self, num_workers: int) -> None:
        def make(index: int) -> Sample:
            return SAMPLES[{5: N}.get(index, index)]

        batches = BatchLoader(LazySamples(N, make), ids, sampler(), num_workers)
        with pytest.raises(DataError) as caught:
            list(batches)
        assert str(caught.value).startswith(
            "Sample number 5 (from 0) can't be made: IndexError: list index"
        )
