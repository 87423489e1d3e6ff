"""The base of all datasets: a subclass loads samples; splits, checks and loaders are here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.files import open_image_file
from lightning_mllm.data.images.geometry import GeometryName
from lightning_mllm.data.images.processor import limit_length, load_processor
from lightning_mllm.data.loading.bad_rows import BadRows, OnBadRow
from lightning_mllm.data.loading.batch import PaddingSide
from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.data.loading.collator_pair import CollatorPairOptions, make_collator_pair
from lightning_mllm.data.loading.input_record import make_input_record
from lightning_mllm.data.loading.left_out import LeftOut
from lightning_mllm.data.loading.loaders import BatchLoader, ResumableLoader
from lightning_mllm.data.loading.sample_checks import check_sample_labels
from lightning_mllm.data.loading.sample_reader import SampleReader
from lightning_mllm.data.loading.sample_sizes import SampleSizes
from lightning_mllm.data.loading.sampler import GlobalBatchSampler, check_sampler_batches
from lightning_mllm.data.loading.set_up import set_up_splits
from lightning_mllm.data.loading.split_scan import SplitScan
from lightning_mllm.data.loading.splits import Split, check_splits, warn_of_split_seed
from lightning_mllm.data.loading.template_check import check_template_date
from lightning_mllm.data.text.fitting import LongAnswers
from lightning_mllm.data.text.prompts import Prompt
from lightning_mllm.types import LabelSet, Sample

_SPLITS_OF_STAGE: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
}


class MLLMDataModule(SampleReader, L.LightningDataModule):
    """A dataset for a multimodal LLM.

    A subclass implements `load` and forwards its `**kwargs` here.

    `setup` looks for all that can be wrong with a dataset: ids, labels, image files, special tokens
    in texts, and whether the samples that need most room fit.

    Args:
        checkpoint: Hub id or folder of the checkpoint whose processor is used.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether code that comes with the checkpoint may run.
        prompt: What is asked about a sample; by default `ClassificationPrompt` for samples with
            labels, else `ConversationPrompt`.
        train_prompt: What is asked in training; by default the same as in evaluation.
        geometry: How pictures are made square; by default what the checkpoint was trained with.
        train_geometry: How pictures are made square in training; by default as in evaluation.
        batch_size: Samples of a training batch, over all processes.
        eval_batch_size: Samples of a validation or test batch, over all processes.
        max_length: Most tokens of a sample; by default what the model can read. Longer
            conversations lose their first exchanges with the images in them; a sample of which
            nothing useful would be left is left out.
        long_answers: What happens to a sample whose last answer does not fit: it is an error
            (`raise`), the sample is left out (`leave_out`), or the answer is cut at its end
            (`truncate`).
        split_special_tokens: Whether texts may quote special tokens, such as `<s>`, which are then
            read as text.
        num_workers: Processes that load data, per training process.
        group_by_length: Whether a training batch holds samples of similar length.
        seed: Seed of the order of the training samples, of splits, and of a prompt that has no seed
            itself. On the command line it is `seed_everything` by default, else 0.
        padding_side: On which side shorter samples are padded.
        on_bad_row: What happens to rows that can't be used: `raise` refuses the dataset and names
            all of them in one message; `skip` leaves them out, with a warning and a metric of
            their number, and lists them in the run's `bad_rows.csv`.

    Attributes:
        predict_split: The split of the predict loop, which `Trainer.analyze` uses.
        samples: Split -> samples, for splits that are set up.
        left_out: Split -> what of it does not fit into the context, for splits that are set up.
        label_set: The classes; None without labels.
        kinds: Sorted kinds of questions of validation and test, as far as set up; else empty.
        processor: The processor of the checkpoint.
        collator: Makes the batches of training.
        eval_collator: Makes the batches of validation and test.
    """

    samples: dict[Split, Sequence[Sample]]
    left_out: dict[Split, LeftOut]
    label_set: LabelSet | None
    kinds: tuple[str, ...]
    processor: CheckpointProcessor
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
        # a test set may be smaller than the number of processes
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.checkpoint, self.revision = checkpoint, revision
        self.trust_remote_code = trust_remote_code
        self.prompt, self.train_prompt = prompt, train_prompt
        self.geometry, self.train_geometry = geometry, train_geometry
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.max_length, self.num_workers = max_length, num_workers
        self.long_answers, self.split_special_tokens = long_answers, split_special_tokens
        self.group_by_length, self.padding_side = group_by_length, padding_side
        self.seed = seed or 0
        self.predict_split: Split = "test"
        self.samples, self.left_out = {}, {}
        self.label_set = None
        self.kinds = ()
        self._sizes: dict[Split, SampleSizes] = {}
        self._train_loader: ResumableLoader | None = None
        self._loader_state: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Load and check what a stage needs.

        Raises:
            DataError: Something is wrong with the dataset.
            CheckpointError: The checkpoint has no usable processor.
            ConfigError: Options do not fit the checkpoint or the number of processes.
        """
        world_size = self.trainer.world_size if self.trainer else 1
        sizes = {"batch_size": self.batch_size, "eval_batch_size": self.eval_batch_size}
        check_sampler_batches(world_size, **sizes)
        splits = (self.predict_split,) if stage == "predict" else _SPLITS_OF_STAGE[stage]
        self._set_up(splits, together=True)

    def train_dataloader(self) -> ResumableLoader:
        """Return the loader of this process's training batches."""
        trainer: Any = self.trainer
        overfits = trainer is not None and trainer.overfit_batches > 0
        sampler = self._make_sampler("train", training=True, reshuffle=not overfits)
        loader = ResumableLoader(self.samples["train"], self.collator, sampler, self.num_workers)
        if self._loader_state is not None:
            loader.load_state_dict(self._loader_state)
        self._train_loader, self._loader_state = loader, None
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Return the training loader's place in the epoch.

        Lightning keeps it too, but does not restore it where the loader is made before the loops'
        state is loaded, as `estimated_stepping_batches` in `configure_optimizers` does.
        """
        return {"train_loader": self._train_loader.state_dict()} if self._train_loader else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let training continue at that place; other stages only compare the seeds of splits."""
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            trained = state_dict.get("train_loader", {}).get("seed", self.seed)
            warn_of_split_seed(trained, self.seed, type(self).__name__)
            return
        self._loader_state = state_dict["train_loader"]
        if self._train_loader is not None:  # a strategy that restores after the loader is made
            self._train_loader.load_state_dict(state_dict["train_loader"])

    def val_dataloader(self) -> BatchLoader:
        """Return the loader of this process's validation batches."""
        return self._make_eval_loader("val")

    def test_dataloader(self) -> BatchLoader:
        """Return the loader of this process's test batches."""
        return self._make_eval_loader("test")

    def predict_dataloader(self) -> BatchLoader:
        """Return the loader of `predict_split`."""
        return self._make_eval_loader(self.predict_split)

    def plain_dataloader(self, split: Split) -> BatchLoader:
        """Return an evaluation loader: each sample once, in order; a process may ask alone."""
        self._set_up([split])
        return self._make_eval_loader(split)

    @property
    def trains_on_pictures(self) -> bool:
        """Whether any training sample has a picture."""
        return bool(self._sizes["train"].images.any())

    def describe_inputs(self) -> dict[str, Any]:
        """Return how validation makes a model's inputs, as plain data; needs the split `val`."""
        return make_input_record(self.eval_collator, self.samples, type(self).__name__)

    def picture(self, sample: Sample) -> Image.Image:
        """Return a sample's first image as the collator reads it: upright and in RGB."""
        return open_image_file(sample.images[0], f"The image of sample {sample.id!r}")

    def _set_up(self, splits: Iterable[Split], *, together: bool = False) -> None:
        """Load and check the splits that are not there yet; all processes may do so together."""
        wanted = [split for split in splits if split not in self.samples]
        check_splits(wanted, self.splits, type(self).__name__)
        if not wanted:
            return
        for split, outcome in set_up_splits(self, wanted, together=together).items():
            self.samples[split], self._sizes[split] = outcome.samples, outcome.sizes
            self.left_out[split] = outcome.left_out
            self.kinds = tuple(sorted({*self.kinds, *outcome.kinds}))
        if self.trainer is not None and self.trainer.loggers and self.trainer.is_global_zero:
            self.bad_rows.report(Path(self.trainer.default_root_dir))

    def left_out_metrics(self, *splits: Split) -> dict[str, float]:
        """Return how many rows of splits can't be used, and what does not fit, by name."""
        metrics: dict[str, float] = {}
        for split in splits:
            metrics |= self.bad_rows.metrics(split) | self.left_out[split].metrics(split)
        return metrics

    def scan_splits(self, splits: Sequence[Split]) -> list[SplitScan]:
        """Load splits and look at each of their samples once; `bad_rows` gets what is wrong."""
        if self._first is None:
            counted = "collator" in vars(self)  # by an earlier start
            with self.bad_rows.count_nothing() if counted else nullcontext():
                first = self.load_split(self.splits[0])
            self.make_collators(first)
            self._first = first
        labelled = self.first[0].label is not None
        scans = []
        for split in splits:
            samples = self.first if split == self.splits[0] else self.load_split(split)
            self.bad_rows.split = split
            collator = self.collator if split == "train" else self.eval_collator
            names = collator.label_names
            if names:
                samples = check_sample_labels(samples, split, names, self.first, self.bad_rows)
            scans.append(SplitScan(samples, split, collator, self.bad_rows, labelled=labelled))
        return scans

    @property
    def first(self) -> Sequence[Sample]:
        """The first split as loaded, once it is; it has all classes."""
        return self._first or ()

    def load_processor(self) -> CheckpointProcessor:
        """Return the processor of the checkpoint, which is loaded once."""
        if "processor" not in vars(self):
            self.processor = load_processor(self.checkpoint, self.revision, self.trust_remote_code)
        return self.processor

    def _make_eval_loader(self, split: Split) -> BatchLoader:
        sampler = self._make_sampler(split, training=False)
        return BatchLoader(self.samples[split], self.eval_collator, sampler, self.num_workers)

    def _make_sampler(
        self, split: Split, *, training: bool, reshuffle: bool = True
    ) -> GlobalBatchSampler:
        """Return what makes this process's batches of a split."""
        return GlobalBatchSampler(
            self._sizes[split],
            self.batch_size if training else self.eval_batch_size,
            training=training,
            group_by_length=self.group_by_length,
            reshuffle=reshuffle,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )

    def make_collators(self, first: Sequence[Sample]) -> None:
        """Make both collators from the first split, or from samples of all its classes."""
        self.load_processor()
        check_template_date(self.processor, self.checkpoint)
        inputs = CollatorPairOptions(
            self.prompt, self.train_prompt, self.geometry, self.train_geometry, self.seed
        )
        self.collator, self.eval_collator, self.label_set = make_collator_pair(
            self.processor,
            first,
            self.splits[0],
            inputs,
            max_length=limit_length(self.max_length, self.processor, self.checkpoint),
            long_answers=self.long_answers,
            split_special_tokens=self.split_special_tokens,
            padding_side=self.padding_side,
        )
