import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from lightning_mllm.data.sampling import BatchLoader, GlobalBatchSampler, ResumableLoader, SampleSize
from lightning_mllm.errors import ConfigError
from lightning_mllm.types import Sample

N = 22
SAMPLES = [Sample(id=str(k)) for k in range(N)]
SIZES = [SampleSize(images=k % 3, characters=7 * k % 11) for k in range(N)]


def sampler(training: bool = True, batch_size: int = 4, **options: Any) -> GlobalBatchSampler:
    return GlobalBatchSampler(SIZES, batch_size, training=training, **options)


def ids(items: Sequence[tuple[int, Sample]]) -> Any:
    """Stand in for a collator: a batch is its epoch and its samples' ids."""
    return [f"{epoch}:{sample.id}" for epoch, sample in items]


def loader(batch_sampler: GlobalBatchSampler | None = None, num_workers: int = 0) -> ResumableLoader:
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
        full = [batch for batch in batches if len({SIZES[index].images > 0 for index in batch}) == 1]

        assert len(full) >= len(batches) - 1
        spread = [max(SIZES[i].images for i in b) - min(SIZES[i].images for i in b) for b in full]
        assert sum(spread) <= 1  # image counts differ within a batch only where the sorted list passes from 2 to 1

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
        assert set(last) == set(sampler().global_batches(0)[-1])  # two samples, repeated for four ranks
        assert len(last) == 4

    def test_in_evaluation_each_sample_is_counted_once(self) -> None:
        parts = [list(sampler(False, rank=rank, world_size=4)) for rank in range(4)]

        assert sorted(index for part in parts for batch in part for _, index in batch) == list(range(N))

    def test_the_batch_size_must_be_shared_evenly(self) -> None:
        with pytest.raises(ConfigError, match="batch size 5 is shared by 2 processes"):
            sampler(batch_size=5, world_size=2)


class TestResuming:
    @pytest.mark.parametrize("done", [0, 1, 5, 6])
    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_the_remaining_batches_follow_and_then_whole_epochs(self, done: int, num_workers: int) -> None:
        if num_workers and done != 5:
            pytest.skip("starting workers is slow; once will do")
        first = loader()
        first.batch_sampler.set_epoch(2)
        batches = iter(first)
        seen = [next(batches) for _ in range(done)]
        state = first.state_dict() if done else {"epoch": 2, "batches": 0}
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


class Recorder(L.LightningModule):
    """Remembers the batches it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[list[str]] = []

    def training_step(self, batch: list[str], _: int) -> torch.Tensor:
        self.seen.append(batch)
        loss: torch.Tensor = self.layer(torch.ones(1)).sum()
        return loss

    def validation_step(self, batch: list[str], _: int) -> None:
        assert batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAlways(L.Callback):
    """Saves a checkpoint behind every step, every validation and every epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.at: list[tuple[Path, int]] = []  # file, batches seen

    def save(self, trainer: L.Trainer, module: L.LightningModule, moment: str) -> None:
        if not trainer.sanity_checking:
            path = self.folder / f"{len(self.at)}-{moment}.ckpt"
            trainer.save_checkpoint(path)
            self.at.append((path, len(module.seen)))  # type: ignore[arg-type]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.save(trainer, pl_module, "step")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer, pl_module, "validation")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer, pl_module, "epoch")


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")  # lightning 2.6 with torch 2.13
def test_lightning_resumes_from_any_checkpoint_with_the_next_batch(tmp_path: Path) -> None:
    def fit(callbacks: list[L.Callback], path: Path | None = None) -> Recorder:
        module = Recorder()
        trainer = L.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            val_check_interval=3,
            callbacks=callbacks,
        )
        evaluation = BatchLoader(SAMPLES, ids, sampler(training=False))
        trainer.fit(module, loader(), evaluation, ckpt_path=path, weights_only=True)
        return module

    saver = SaveAlways(tmp_path)
    whole = fit([saver]).seen

    assert len(whole) == 12
    assert whole[6][0].startswith("1:")
    for path, seen in saver.at:
        assert fit([], path).seen == whole[seen:], path.name
