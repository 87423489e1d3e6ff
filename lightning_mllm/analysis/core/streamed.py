"""Analyses of many samples that keep sums, not samples: memory and files do not grow with the data.

Each process writes what it has so far to a file of its own, `sums-<process>.safetensors`, every few
batches: the sums, and the ids of the samples that are in them. What is killed continues from there;
samples that came after the last file are run again, and none counts twice. `merge` makes one
`sums.safetensors` of all. `making.json` says with which settings they were made.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.core.running_sums import RunningSums
from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.statistics.jackknife import jackknife_group
from lightning_mllm.store.manifest import claim_folder_in_manifest
from lightning_mllm.types import Sample

_MERGED, _OF_RANKS = "sums.safetensors", "sums-*.safetensors"


class StreamedAnalysis(Analysis):
    """An analysis of perceptual and textual tokens that keeps sums over samples.

    Samples without tokens of both sets are left out, and counted.

    Args:
        sets: Which tokens count.
        groups: Into how many groups samples are put, for intervals.
        seed: Seed of the groups, and of everything else that is drawn.
        snapshot_every: Number of batches between two files of what is found so far.
        label: Name of the analysis, by default its class's.
    """

    fewest_groups: ClassVar[int] = 2
    found: RunningSums
    _done: set[str]  # samples of all processes that are not run again
    _again: set[str]  # but for these
    _unwritten: int  # batches

    def __init__(
        self, *, sets: TokenSets, groups: int, seed: int, snapshot_every: int, label: str
    ) -> None:
        super().__init__(label=label)
        if groups < self.fewest_groups or snapshot_every < 1:
            raise ConfigError(
                f"{self.name} needs {self.fewest_groups} groups or more and a snapshot every batch "
                f"or less often, not groups={groups} and snapshot_every={snapshot_every}."
            )
        self.sets, self.groups = sets, groups
        self.seed, self.snapshot_every = seed, snapshot_every
        self._folder: Path | None = None
        self._rank = 0
        self.reset()

    @abstractmethod
    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, masks: Tensor
    ) -> Mapping[str, Tensor]:
        """Return what has sums, (batch, ...) each.

        Args:
            backbone: The model.
            batch: Samples with tokens of both sets.
            masks: (batch, sets, sequence) bool, their tokens.
        """

    @abstractmethod
    def summarise(self, found: RunningSums, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the result of all samples, whose sums are on the CPU."""

    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse data without images; single samples without one are left out, and counted."""
        if not any(sample.images for sample in samples):
            raise ConfigError(
                f"{self.name} compares images with text, but no sample has an image. Use data "
                "with images."
            )

    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path | None = None,
        source: Mapping[str, Any] | None = None,
        rank: int = 0,
        answers: object = None,
    ) -> None:
        """Get ready; see `Analysis.prepare`."""
        self.reset()
        self._tokenizer, self._source = tokenizer, source or {}
        self._folder, self._rank = folder, rank
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            claim_folder_in_manifest(folder, self.making)
            files = _read(folder)
            self.found = files.get(folder / self._own_file, self.found)
            for found in files.values():
                self._done |= found.done
                self._again |= self.read_again(found)

    @torch.no_grad()
    def update(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Take in the samples of a batch that are not in yet."""
        self.check_model(backbone)
        ids = batch.sample_ids
        masks = self.sets.of(batch)
        has_both = masks.any(-1).all(-1).tolist()
        new: set[str] = set()
        left_out: set[str] = set()
        counted, again = [], []  # rows
        for row, sample_id in enumerate(ids):
            if sample_id in self._again:
                again.append(row)
            if sample_id in self._done or sample_id in new:
                continue
            new.add(sample_id)
            if has_both[row]:
                counted.append(row)
            else:
                left_out.add(sample_id)
        if rows := [*counted, *again]:
            some = batch if rows == [*range(len(batch))] else batch.take(rows)
            measured = self.measure(backbone, some, masks[rows])
            added = {name: values[: len(counted)] for name, values in measured.items()}
            self.add(added, batch.take(counted))
        self._again -= set(ids)
        self._done |= new
        self.found.done |= new
        self.found.left_out |= left_out
        self._unwritten += bool(new or again)
        if self._unwritten >= self.snapshot_every:
            self._write()

    def add(self, measured: Mapping[str, Tensor], batch: MultimodalBatch) -> None:
        """Add what new samples measure to the sums of their groups, and their number."""
        if not len(batch):
            return
        self.add_to_groups({"n": torch.ones(len(batch)), **measured}, batch)

    def add_to_groups(self, named: Mapping[str, Tensor], batch: MultimodalBatch) -> None:
        """Add what samples have, (batch, ...) each, to the sums of their groups."""
        groups = [jackknife_group(picture, self.seed, self.groups) for picture in batch.pictures]
        for name, values in named.items():
            at = torch.tensor(groups, device=values.device)
            self.found.add_to_groups(name, values, at, self.groups)

    def read_again(self, found: RunningSums) -> set[str]:
        """Return which samples to run again after a restart, though they are in the sums."""
        return set()

    def settle(self) -> None:
        """Write down what is not written yet: called in each process, after its last batch."""
        if self._unwritten:
            self._write()

    def merge(self) -> None:
        """Make one file of what all processes have found."""
        self.settle()
        if self._folder is not None:
            self._all().write(self._folder / _MERGED)
            for path in self._folder.glob(_OF_RANKS):
                path.unlink()
            self.found = RunningSums()

    def compute(self) -> AnalysisResult:
        """Return the result of all samples.

        Raises:
            DataError: None has tokens of both sets.
        """
        self.settle()
        found = self._all()
        if "n" not in found.sums:
            raise DataError(
                f"{self.name} has no sample with an image and text after it; {len(found.left_out)} "
                "were left out. Use data with images, or sets.before_image: true where the text "
                "stands before them."
            )
        return self.summarise(found, self.making)

    def reset(self) -> None:
        """Forget all samples; what is in a folder stays there."""
        self.found = RunningSums()
        self._done = set()
        self._again = set()
        self._unwritten = 0

    @property
    def _own_file(self) -> str:
        return f"sums-{self._rank}.safetensors"

    def _write(self) -> None:
        if self._folder is not None:
            self.found.write(self._folder / self._own_file)
        self._unwritten = 0

    def _all(self) -> RunningSums:
        """Return what all processes have found, on the CPU."""
        every = [self.found] if self._folder is None else _read(self._folder).values()
        together = RunningSums()
        for found in every:
            together.take_in(found)
        together.sums = {name: total.cpu() for name, total in together.sums.items()}
        return together


def _read(folder: Path) -> dict[Path, RunningSums]:
    """Return what is in the files of a folder.

    A file that is left over from those that were merged does not count twice.
    """
    files: dict[Path, RunningSums] = {}
    merged: set[str] = set()  # samples
    if (folder / _MERGED).is_file():
        files[folder / _MERGED] = RunningSums.read(folder / _MERGED)
        merged = files[folder / _MERGED].done
    for path in sorted(folder.glob(_OF_RANKS)):
        found = RunningSums.read(path)
        if not found.done <= merged:
            files[path] = found
    return files
