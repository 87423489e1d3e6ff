"""The base of all datasets: a subclass only loads samples; splits, checks, collation and loaders are here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from transformers import ProcessorMixin

from lightning_mllm.data.images.files import open_image
from lightning_mllm.data.images.geometry import GeometryName
from lightning_mllm.data.images.processor import context_length, load_processor, warn_of_date
from lightning_mllm.data.loading.bad_rows import BadRows, OnBadRow
from lightning_mllm.data.loading.checks import check_labels
from lightning_mllm.data.loading.collator import Collator, PaddingSide
from lightning_mllm.data.loading.collator_pair import InputOptions, make_collators
from lightning_mllm.data.loading.dry_run import dry_run_splits
from lightning_mllm.data.loading.duplicates import warn_of_shared_pictures
from lightning_mllm.data.loading.input_record import describe_inputs
from lightning_mllm.data.loading.left_out import LeftOut
from lightning_mllm.data.loading.sampler import (
    BatchLoader,
    GlobalBatchSampler,
    ResumableLoader,
    SampleSize,
    check_batch_sizes,
)
from lightning_mllm.data.loading.split_scan import SplitScan
from lightning_mllm.data.loading.splits import Split, check_splits, warn_of_another_seed
from lightning_mllm.data.text.fitting import LongAnswers
from lightning_mllm.data.text.prompts import Prompt
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import LabelSet, Sample

_SPLITS_OF_STAGE: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
}


class MLLMDataModule(L.LightningDataModule, ABC):
    """A dataset for a multimodal LLM. A subclass implements `load` and forwards its `**kwargs` here.

    All that can be wrong with a dataset is looked for in `setup`: ids, labels, image files, special tokens in texts,
    and whether the samples that need most room fit.

    Args:
        checkpoint: Hub id or folder, for its processor.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether code that comes with the checkpoint may run.
        prompt: What is asked; by default `ClassificationPrompt` for samples with labels, else `ConversationPrompt`.
        train_prompt: What takes its place in training.
        geometry: How pictures are made square; by default what the checkpoint was trained with.
        train_geometry: What takes its place in training.
        batch_size: Samples of a training batch, over all processes.
        eval_batch_size: Samples of a validation or test batch, over all processes.
        max_length: Most tokens of a sample; by default what the model can read. Of longer conversations the first
            exchanges are left out, with their images, and the sample where nothing of use would be left.
        long_answers: What happens to a sample whose last answer does not fit: an error, or the sample is left out, or
            the answer is cut at its end.
        split_special_tokens: Whether texts may quote special tokens, such as `<s>`, which are then read as text.
        num_workers: Processes that load data, per training process.
        group_by_length: Whether training batches hold samples of like length.
        seed: Seed of the order of the training samples, of splits, and of a prompt that has none of its own. On the
            command line it is by default `seed_everything`, else 0.
        padding_side: Where shorter samples are filled up.
        on_bad_row: `raise` refuses a dataset with rows that can't be used, all named in one message; `skip` leaves them
            out, with a warning, their number among the metrics and the whole list in the run's `bad_rows.csv`.

    Attributes:
        bad_rows: Gathers rows that can't be used; `load` may put its own there.
        splits: The splits that there are; the first has all classes.
        predict_split: What the predict loop goes through, which is that of `Trainer.analyze`.
        samples: Split -> samples, as far as they are set up.
        left_out: Split -> what of it does not fit into the context, as far as they are set up.
        label_set: The classes; None without labels.
        kinds: Kinds of questions of the validation and test splits that are set up, sorted; empty with labels.
        processor: The checkpoint's processor.
        collator: Makes training batches.
        eval_collator: Makes validation and test batches.
    """

    splits: ClassVar[tuple[Split, ...]] = ("train", "val", "test")

    samples: dict[Split, Sequence[Sample]]
    left_out: dict[Split, LeftOut]
    label_set: LabelSet | None
    kinds: tuple[str, ...]
    processor: ProcessorMixin
    collator: Collator
    eval_collator: Collator

    def __init__(
        self,
        *,
        checkpoint: str,
        revision: str | None = None,
        trust_remote_code: bool = False,
        prompt: Prompt | None = None,
        train_prompt: Prompt | None = None,
        geometry: GeometryName | None = None,
        train_geometry: GeometryName | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 16,
        max_length: int | None = None,
        long_answers: LongAnswers = "raise",
        split_special_tokens: bool = False,
        num_workers: int = 0,
        group_by_length: bool = True,
        seed: int | None = None,
        padding_side: PaddingSide = "right",
        on_bad_row: OnBadRow = "raise",
    ) -> None:
        super().__init__()
        self.bad_rows = BadRows(on_bad_row)
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a test set smaller than the processes
        self.checkpoint, self.revision, self.trust_remote_code = checkpoint, revision, trust_remote_code
        self.prompt, self.train_prompt = prompt, train_prompt
        self.geometry, self.train_geometry = geometry, train_geometry
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.max_length, self.num_workers = max_length, num_workers
        self.long_answers, self.split_special_tokens = long_answers, split_special_tokens
        self.group_by_length, self.seed, self.padding_side = group_by_length, seed or 0, padding_side
        self.predict_split: Split = "test"
        self.samples, self.left_out = {}, {}
        self.label_set = None
        self.kinds = ()
        self._sizes: dict[Split, list[SampleSize]] = {}
        self._first: Sequence[Sample] | None = None  # split, as loaded: the classes come from it, whatever the stage
        self._train_loader: ResumableLoader | None = None
        self._loader_state: dict[str, Any] | None = None

    @abstractmethod
    def load(self, split: Split) -> Sequence[Sample]:
        """Return the samples of a split, images not yet opened; labels may have underscores.

        Called for the first of `splits` at every stage, since the classes are those of the training split. What is
        wrong with a row is best noted, so that all is said at once: `with self.bad_rows.catch():` around what reads a
        row and may raise a `DataError`, and `self.bad_rows.settle()` at the end.
        """

    def setup(self, stage: str) -> None:
        """Load and check what a stage needs.

        Raises:
            DataError: Something is wrong with the dataset.
            CheckpointError: The checkpoint has no usable processor.
            ConfigError: Options do not fit the checkpoint or the number of processes.
        """
        world_size = self.trainer.world_size if self.trainer else 1
        check_batch_sizes(world_size, batch_size=self.batch_size, eval_batch_size=self.eval_batch_size)
        self._set_up((self.predict_split,) if stage == "predict" else _SPLITS_OF_STAGE[stage])

    def train_dataloader(self) -> ResumableLoader:
        """Return the loader of this process's training batches."""
        overfits = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        sampler = self._sampler("train", self.batch_size, training=True, reshuffle=not overfits)
        loader = ResumableLoader(self.samples["train"], self.collator, sampler, self.num_workers)
        if self._loader_state is not None:
            loader.load_state_dict(self._loader_state)
        self._train_loader, self._loader_state = loader, None
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Return the training loader's place in the epoch.

        Lightning keeps it too, but does not restore it where the loader is made before the loops' state is loaded, as
        `estimated_stepping_batches` in `configure_optimizers` does.
        """
        return {"train_loader": self._train_loader.state_dict()} if self._train_loader else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let training continue at that place; other stages only look whether the split is that of the training."""
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            trained = state_dict.get("train_loader", {}).get("seed", self.seed)
            warn_of_another_seed(trained, self.seed, type(self).__name__)
            return
        self._loader_state = state_dict["train_loader"]
        if self._train_loader is not None:  # a strategy that restores after the loader is made
            self._train_loader.load_state_dict(state_dict["train_loader"])

    def val_dataloader(self) -> BatchLoader:
        """Return the loader of this process's validation batches."""
        return self._eval_loader("val")

    def test_dataloader(self) -> BatchLoader:
        """Return the loader of this process's test batches."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> BatchLoader:
        """Return the loader of `predict_split`."""
        return self._eval_loader(self.predict_split)

    def plain_dataloader(self, split: Split) -> BatchLoader:
        """Return the loader of a split as evaluation reads it: each sample once and in order, whatever the stage."""
        self._set_up([split])
        return self._eval_loader(split)

    @property
    def trains_on_pictures(self) -> bool:
        """Whether any training sample has a picture."""
        return any(size.images for size in self._sizes["train"])

    def describe_inputs(self) -> dict[str, Any]:
        """Return how validation makes a model's inputs, as plain data; its split is set up."""
        return describe_inputs(self.eval_collator, self.samples["val"][0])

    def picture(self, sample: Sample) -> Image.Image:
        """Return a sample's first image as the collator reads it: upright, in RGB, within the bounds."""
        return open_image(sample.images[0], f"The image of sample {sample.id!r}")

    def _set_up(self, splits: Iterable[Split]) -> None:
        """Load and check the splits that are not there yet."""
        wanted = [split for split in splits if split not in self.samples]
        check_splits(wanted, self.splits, type(self).__name__)
        if not wanted:
            return
        with self.gather():
            scans = self.scan_splits(wanted)
            sizes = dry_run_splits(scans, self.bad_rows)
            for scan in scans:
                scan.warn_of_unseen_boxes(sizes)
        for scan in scans:
            samples, self._sizes[scan.split] = scan.select_kept()
            if not samples:
                raise scan.explain_empty()
            self.samples[scan.split], self.left_out[scan.split] = samples, scan.left_out
        new = [split for split in wanted if split != self.splits[0]]
        warn_of_shared_pictures({self.splits[0]: self._first or (), **self.samples}, new)
        self.kinds = tuple(sorted({*self.kinds}.union(*(scan.kinds for scan in scans))))
        if self.trainer is not None and self.trainer.loggers and self.trainer.is_global_zero:
            self.bad_rows.report(Path(self.trainer.default_root_dir))

    def left_out_metrics(self, *splits: Split) -> dict[str, float]:
        """Return how many rows of splits can't be used, and what does not fit, as far as there are any."""
        parts = [found.metrics(split) for split in splits for found in (self.bad_rows, self.left_out[split])]
        return {name: value for part in parts for name, value in part.items()}

    @contextmanager
    def gather(self) -> Iterator[None]:
        """Say all at once that is wrong with rows; after an error the next attempt reads the dataset anew."""
        try:
            with self.bad_rows.gather():
                yield
        except DataError:
            self._first = None
            raise

    def scan_splits(self, splits: Sequence[Split]) -> list[SplitScan]:
        """Load splits, and look at each of their samples once; what is wrong with them goes to `bad_rows`."""
        if self._first is None:
            first = self._load(self.splits[0])
            self._set_up_collators(first)
            self._first = first
        scans = []
        for split in splits:
            samples = self._first if split == self.splits[0] else self._load(split)
            self.bad_rows.split, collator = split, self._collator_of(split)
            if collator.label_names:
                samples = check_labels(samples, split, collator.label_names, self._first, self.bad_rows)
            scans.append(SplitScan(samples, split, collator, self.bad_rows, labelled=self._first[0].label is not None))
        return scans

    def _load(self, split: Split) -> Sequence[Sample]:
        self.bad_rows.split = split
        samples = self.load(split)
        if not samples:
            raise DataError(
                f"The {split!r} split of {type(self).__name__} is empty. Give it samples, e.g. by the dataset's "
                f"{split + '_fraction' if split != 'train' else 'path'} option."
            )
        return samples

    def _eval_loader(self, split: Split) -> BatchLoader:
        sampler = self._sampler(split, self.eval_batch_size, training=False)
        return BatchLoader(self.samples[split], self.eval_collator, sampler, self.num_workers)

    def _sampler(self, split: Split, batch_size: int, *, training: bool, reshuffle: bool = True) -> GlobalBatchSampler:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return GlobalBatchSampler(
            self._sizes[split],
            batch_size,
            training=training,
            group_by_length=self.group_by_length,
            reshuffle=reshuffle,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )

    def _set_up_collators(self, first: Sequence[Sample]) -> None:
        options = (self.checkpoint, self.revision, self.trust_remote_code)
        self.processor = load_processor(*options)
        warn_of_date(self.processor, self.checkpoint)
        limit = context_length(self.processor, *options)
        if self.max_length is not None and self.max_length > limit:
            raise ConfigError(f"max_length is {self.max_length}, but {self.checkpoint!r} reads {limit} tokens at most.")
        self.collator, self.eval_collator, self.label_set = make_collators(
            self.processor,
            first,
            self.splits[0],
            InputOptions(self.prompt, self.train_prompt, self.geometry, self.train_geometry, self.seed),
            max_length=self.max_length or limit,
            long_answers=self.long_answers,
            split_special_tokens=self.split_special_tokens,
            padding_side=self.padding_side,
        )

    def _collator_of(self, split: Split) -> Collator:
        return self.collator if split == "train" else self.eval_collator
