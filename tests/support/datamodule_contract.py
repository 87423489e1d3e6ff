"""What every dataset owes: a test class that inherits this one gets these checks for free."""

from abc import ABC, abstractmethod
from typing import Any

import pytest
import torch

from lightning_mllm.data import MLLMDataModule
from lightning_mllm.types import IGNORE_INDEX, MultimodalBatch, Segment

SPLITS = ("train", "val", "test")


class DataModuleContract(ABC):
    """A subclass makes a small datamodule of its dataset; the checkpoint and other options pass through."""

    @abstractmethod
    def make(self, checkpoint: str, **options: Any) -> MLLMDataModule: ...

    @pytest.fixture
    def module(self, tiny_llava: str) -> MLLMDataModule:
        module = self.make(tiny_llava, batch_size=4, eval_batch_size=4)
        module.setup("fit")
        module.setup("test")
        return module

    def test_all_splits_are_set_up_and_disjoint(self, module: MLLMDataModule) -> None:
        ids = [sample.id for split in SPLITS for sample in module.samples[split]]  # type: ignore[index]

        assert all(module.samples[split] for split in SPLITS)  # type: ignore[index]
        assert len(set(ids)) == len(ids)

    def test_loading_twice_gives_the_same(self, module: MLLMDataModule, tiny_llava: str) -> None:
        again = self.make(tiny_llava)
        for split, samples in module.samples.items():
            assert [sample.id for sample in again.load(split)] == [sample.id for sample in samples]

    def test_batches_are_whole_and_carry_loss(self, module: MLLMDataModule) -> None:
        batches = list(module.train_dataloader())

        assert len(batches) == len(module.train_dataloader())
        assert sorted(_ids(batches)) == sorted(sample.id for sample in module.samples["train"])
        for batch in batches:
            assert (batch.labels != IGNORE_INDEX).any(dim=1).all()
            assert (batch.spans[Segment.LAST].sum(dim=1) == 1).all()

    def test_each_evaluation_sample_comes_once_and_in_order(self, module: MLLMDataModule) -> None:
        assert _ids(list(module.val_dataloader())) == [sample.id for sample in module.samples["val"]]
        assert _ids(list(module.test_dataloader())) == [sample.id for sample in module.samples["test"]]

    def test_the_training_loader_resumes_within_an_epoch(self, module: MLLMDataModule) -> None:
        loader = module.train_dataloader()
        batches = iter(loader)
        next(batches)
        state = loader.state_dict()
        rest = list(batches)

        resumed = module.train_dataloader()
        resumed.load_state_dict(state)

        for batch, again in zip(rest, resumed, strict=True):
            assert torch.equal(batch.input_ids, again.input_ids)
        assert len(list(resumed)) == len(loader)

    def test_classes_do_not_depend_on_the_stage(self, module: MLLMDataModule, tiny_llava: str) -> None:
        alone = self.make(tiny_llava)
        alone.setup("test")

        assert alone.label_set == module.label_set
        assert set(alone.samples) == {"test"}

    def test_targets_name_the_labels(self, module: MLLMDataModule) -> None:
        batch = next(iter(module.val_dataloader()))
        labels = [sample.label for sample in module.samples["val"][: len(batch)]]

        if module.label_set is None:
            assert (batch.targets == -1).all()
        else:
            assert [module.label_set.names[target] for target in batch.targets] == labels


def _ids(batches: list[MultimodalBatch]) -> list[str]:
    return [name for batch in batches for name in batch.sample_ids]
