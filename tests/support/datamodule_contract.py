"""What every dataset owes: a test class that inherits this one gets these checks for free."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import MLLMDataModule
from lightning_mllm.types import IGNORE_INDEX, Segment


class DataModuleContract(ABC):
    """A subclass makes a small DataModule of its dataset; a dataset in files is written once.

    Tests share one module that is set up; a test that changes files belongs outside the class.
    """

    folder: Path

    def write(self, folder: Path) -> None:  # noqa: B027 - datasets in memory have none
        """Write the files of a small dataset; nothing for a dataset without files."""

    @abstractmethod
    def make(self, checkpoint: str, **options: Any) -> MLLMDataModule:
        """Make the DataModule of `self.folder`; the checkpoint and other options pass through."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _write_once(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.folder = tmp_path_factory.mktemp("dataset")
        cls().write(cls.folder)

    @pytest.fixture(scope="class")
    @classmethod
    def module(cls, tiny_llava: str) -> MLLMDataModule:
        module = cls().make(tiny_llava, batch_size=4, eval_batch_size=4)
        if "train" in module.splits:
            module.setup("fit")
        module.setup("test")
        return module

    def test_all_splits_are_set_up_and_disjoint(self, module: MLLMDataModule) -> None:
        samples = [sample for split in module.splits for sample in module.samples[split]]

        assert all(module.samples[split] for split in module.splits)
        assert len({sample.id for sample in samples}) == len(samples)

    def test_loading_twice_gives_the_same(self, module: MLLMDataModule, tiny_llava: str) -> None:
        again = self.make(tiny_llava)
        for split, samples in module.samples.items():
            loaded = again.load(split)
            assert [sample.id for sample in loaded] == [sample.id for sample in samples]

    def test_batches_are_whole_and_carry_loss(self, module: MLLMDataModule) -> None:
        loaders = [(module.test_dataloader(), module.samples["test"])]
        if "train" in module.splits:
            loaders.append((module.train_dataloader(), module.samples["train"]))
        for loader, samples in loaders:
            batches = list(loader)
            assert len(batches) == len(loader)
            assert sorted(_ids(batches)) == sorted(sample.id for sample in samples)
            for batch in batches:
                assert (batch.labels != IGNORE_INDEX).any(dim=1).all()
                assert (batch.spans[Segment.LAST].sum(dim=1) == 1).all()

    def test_each_evaluation_sample_comes_once_and_in_order(self, module: MLLMDataModule) -> None:
        for split in module.splits:
            batches = list(module.plain_dataloader(split))
            assert _ids(batches) == [sample.id for sample in module.samples[split]]

    def test_the_training_loader_resumes_within_an_epoch(self, module: MLLMDataModule) -> None:
        if "train" not in module.splits:
            pytest.skip("there is nothing to train on")
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

    def test_classes_do_not_depend_on_the_stage(
        self, module: MLLMDataModule, tiny_llava: str
    ) -> None:
        alone = self.make(tiny_llava)
        alone.setup("test")

        assert alone.label_set == module.label_set
        assert set(alone.samples) == {"test"}

    def test_targets_name_the_labels(self, module: MLLMDataModule) -> None:
        batch = next(iter(module.test_dataloader()))
        labels = [sample.label for sample in module.samples["test"][: len(batch)]]

        if module.label_set is None:
            assert (batch.targets == -1).all()
        else:
            assert [module.label_set.names[target] for target in batch.targets] == labels


def _ids(batches: list[MultimodalBatch]) -> list[str]:
    return [name for batch in batches for name in batch.sample_ids]
