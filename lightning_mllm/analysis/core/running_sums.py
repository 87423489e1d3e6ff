"""Analyses of many samples that keep sums, not samples: memory and files do not grow with the data.

Each process writes what it has so far to a file of its own, `sums-<process>.safetensors`, every few batches: the sums,
and the ids of the samples that are in them. What is killed goes on from there; samples behind the last file are read
again, and none counts twice. `merge` makes one `sums.safetensors` of all. `making.json` says how they were made.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.statistics.jackknife import group_of
from lightning_mllm.store.files import write_tensors
from lightning_mllm.store.manifest import claim_folder
from lightning_mllm.types import MultimodalBatch, Sample

_MERGED, _SHARES = "sums.safetensors", "sums-*.safetensors"


@dataclass
class Found:
    """What is found so far.

    Attributes:
        sums: Over samples, float64; those per group of samples are (groups, ...).
        kept: Of single samples or pairs of them, by name; all of one shape.
        done: Ids of the samples that were looked at, those that were left out among them.
        left_out: Ids of those.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)

    def add(self, name: str, summand: Tensor) -> None:
        """Add to a sum."""
        total = self.sums.get(name)
        self.sums[name] = (
            summand.to(torch.float64, copy=True) if total is None else total.to(summand.device).add_(summand)
        )

    def add_to_groups(self, name: str, values: Tensor, groups: Tensor, number: int) -> None:
        """Add (samples, ...) values to the sums of their groups, (samples,) of `number`."""
        total = self.sums.get(name)
        if total is None:
            total = values.new_zeros((number, *values.shape[1:]), dtype=torch.float64)
        self.sums[name] = total.to(values.device).index_add_(0, groups, values.double())

    def take_in(self, other: Found) -> None:
        """Add what another process has found."""
        for name, summand in other.sums.items():
            self.add(name, summand)
        self.kept |= other.kept
        self.done |= other.done
        self.left_out |= other.left_out

    def write(self, path: Path) -> None:
        """Write a file, whole or not at all."""
        tensors = {f"sum/{name}": total.cpu() for name, total in self.sums.items()}
        if self.kept:
            tensors["kept"] = torch.stack([each.cpu() for each in self.kept.values()])
        more = {"kept": list(self.kept), "done": sorted(self.done), "left_out": sorted(self.left_out)}
        write_tensors(path, tensors, {name: json.dumps(each) for name, each in more.items()})

    @classmethod
    def read(cls, path: Path) -> Found:
        """Read such a file.

        Raises:
            DataError: It is none.
        """
        try:
            with safe_open(path, framework="pt") as file:
                more = {name: json.loads(text) for name, text in file.metadata().items()}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            kept = dict(zip(more["kept"], tensors.pop("kept", ()), strict=True))
            sums = {name.removeprefix("sum/"): total for name, total in tensors.items()}
            return cls(sums, kept, set(more["done"]), set(more["left_out"]))
        except (OSError, SafetensorError, KeyError, ValueError, AttributeError) as error:
            raise DataError(f"{path} holds no sums of an analysis ({error}). Begin anew in another folder.") from error


class StreamedAnalysis(Analysis):
    """An analysis of perceptual and textual tokens that keeps sums over samples.

    Samples without tokens of both sets are left out, and counted.

    Args:
        sets: Which tokens count.
        groups: Into how many groups samples are put, for intervals.
        seed: Of that, and of everything else that is drawn.
        snapshot_every: Batches between two files of what is found so far.
        label: Name of the analysis, by default its class's.
    """

    default_name: ClassVar[str]
    found: Found
    _done: set[str]  # samples of all processes that are not looked at again
    _again: set[str]  # but for these
    _unwritten: int  # batches

    def __init__(self, *, sets: TokenSets, groups: int, seed: int, snapshot_every: int, label: str) -> None:
        self.name = label or self.default_name
        if self.name != Path(self.name).name:
            raise ConfigError(f"The label of an analysis names a folder, so it can't be {label!r}. Leave slashes out.")
        if groups < 2 or snapshot_every < 1:
            raise ConfigError(
                f"{self.name} needs two groups or more and a snapshot every batch or less often, not groups={groups} "
                f"and snapshot_every={snapshot_every}."
            )
        self.sets, self.groups, self.seed, self.snapshot_every = sets, groups, seed, snapshot_every
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._source: Mapping[str, Any] = {}
        self._folder: Path | None = None
        self._share = 0
        self.reset()

    @abstractmethod
    def measure(self, backbone: Backbone, batch: MultimodalBatch, masks: Tensor) -> Mapping[str, Tensor]:
        """Return what has sums, (batch, ...) each.

        Args:
            backbone: The model.
            batch: Samples with tokens of both sets.
            masks: (batch, sets, sequence) bool, their tokens.
        """

    @abstractmethod
    def summarise(self, found: Found, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the result of all samples, whose sums are on the CPU."""

    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse data without images; single samples without one are left out, and counted."""
        if not any(sample.images for sample in samples):
            raise ConfigError(
                f"{self.name} compares images with text, but no sample has an image. Use data with images."
            )

    @property
    def making(self) -> dict[str, Any]:
        """What decides the sums: settings and source."""
        return {"analysis": dict(self.settings), "source": dict(self._source)}

    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path | None = None,
        source: Mapping[str, Any] | None = None,
        share: int = 0,
        answers: object = None,
    ) -> None:
        """Get ready; see `Analysis.prepare`."""
        self.reset()
        self._tokenizer, self._folder, self._source, self._share = tokenizer, folder, source or {}, share
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            claim_folder(folder, self.making)
            files = _read(folder)
            self.found = files.get(folder / self._own_file, self.found)
            self._done = {sample_id for found in files.values() for sample_id in found.done}
            self._again = {sample_id for found in files.values() for sample_id in self.read_again(found)}

    @torch.no_grad()
    def update(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Take in the samples of a batch that are not in yet."""
        ids = batch.sample_ids
        new = [row for row, sample_id in enumerate(ids) if sample_id not in self._done and sample_id not in ids[:row]]
        masks = self.sets.of(batch)
        whole = masks.any(-1).all(-1).tolist()
        counted = [row for row in new if whole[row]]
        again = [row for row, sample_id in enumerate(ids) if sample_id in self._again]
        if rows := [*counted, *again]:
            measured = self.measure(backbone, batch if rows == [*range(len(batch))] else batch.take(rows), masks[rows])
            self.add({name: values[: len(counted)] for name, values in measured.items()}, batch.take(counted))
        self._again -= {ids[row] for row in again}
        self._done |= {ids[row] for row in new}
        self.found.done |= {ids[row] for row in new}
        self.found.left_out |= {ids[row] for row in new if not whole[row]}
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
        groups = [group_of(picture, self.seed, self.groups) for picture in batch.pictures]
        for name, values in named.items():
            at = torch.tensor(groups, device=values.device)
            self.found.add_to_groups(name, values, at, self.groups)

    def read_again(self, found: Found) -> set[str]:
        """Return which samples a process that goes on has to read again, though they are in the sums."""
        return set()

    def settle(self) -> None:
        """Write down what is not yet: each process, behind its last batch."""
        if self._unwritten:
            self._write()

    def merge(self) -> None:
        """Make one file of what all processes have found."""
        self.settle()
        if self._folder is not None:
            self._all().write(self._folder / _MERGED)
            for path in self._folder.glob(_SHARES):
                path.unlink()
            self.found = Found()

    def compute(self) -> AnalysisResult:
        """Return the result of all samples.

        Raises:
            DataError: None has tokens of both sets.
        """
        self.settle()
        found = self._all()
        if "n" not in found.sums:
            raise DataError(
                f"{self.name} has no sample with an image and text behind it; {len(found.left_out)} were left out. Use "
                "data with images, or sets.before_image: true where the text stands before them."
            )
        return self.summarise(found, self.making)

    def reset(self) -> None:
        """Forget all samples; what is in a folder stays there."""
        self.found = Found()
        self._done = set()
        self._again = set()
        self._unwritten = 0

    @property
    def _own_file(self) -> str:
        return f"sums-{self._share}.safetensors"

    def _write(self) -> None:
        if self._folder is not None:
            self.found.write(self._folder / self._own_file)
        self._unwritten = 0

    def _all(self) -> Found:
        """Return what all processes have found, on the CPU."""
        every = [self.found] if self._folder is None else _read(self._folder).values()
        together = Found()
        for found in every:
            together.take_in(found)
        together.sums = {name: total.cpu() for name, total in together.sums.items()}
        return together


def _read(folder: Path) -> dict[Path, Found]:
    """Return what is in the files of a folder; a file that is left of those that were merged does not count twice."""
    merged = folder / _MERGED
    files = {merged: Found.read(merged)} if merged.is_file() else {}
    in_it = files[merged].done if files else set()
    shares = {path: Found.read(path) for path in sorted(folder.glob(_SHARES))}
    return files | {path: found for path, found in shares.items() if not found.done <= in_it}
