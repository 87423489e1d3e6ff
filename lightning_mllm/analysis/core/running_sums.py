"""Sums over samples that an analysis keeps in place of the samples, and their file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_mllm.errors import DataError
from lightning_mllm.store.files import write_tensor_file


@dataclass
class RunningSums:
    """What is found so far.

    Attributes:
        sums: Sums over samples, float64; those per group of samples are (groups, ...).
        kept: Values of single samples or pairs of them, by name; all of one shape.
        done: Ids of the samples that were run, or left out.
        left_out: Ids of the samples that were left out.
        lists: Values of single tokens, (tokens, ...), by name.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)
    lists: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, summand: Tensor) -> None:
        """Add to a sum."""
        total = self.sums.get(name)
        if total is None:
            self.sums[name] = summand.to(torch.float64, copy=True)
        else:
            self.sums[name] = total.to(summand.device).add_(summand)

    def add_to_groups(self, name: str, values: Tensor, groups: Tensor, number: int) -> None:
        """Add (samples, ...) values to the sums of their groups, (samples,) of `number`."""
        total = self.sums.get(name)
        if total is None:
            total = values.new_zeros((number, *values.shape[1:]), dtype=torch.float64)
        self.sums[name] = total.to(values.device).index_add_(0, groups, values.double())

    def extend(self, name: str, values: Tensor) -> None:
        """Add (tokens, ...) values to a list."""
        before = self.lists.get(name)
        self.lists[name] = values if before is None else torch.cat([before, values])

    def take_in(self, other: RunningSums) -> None:
        """Add what another process has found."""
        for name, summand in other.sums.items():
            self.add(name, summand)
        for name, values in other.lists.items():
            self.extend(name, values)
        self.kept |= other.kept
        self.done |= other.done
        self.left_out |= other.left_out

    def write(self, path: Path) -> None:
        """Write a file, whole or not at all."""
        tensors = {f"sum/{name}": total.cpu() for name, total in self.sums.items()}
        tensors |= {f"list/{name}": values.contiguous() for name, values in self.lists.items()}
        if self.kept:
            tensors["kept"] = torch.stack([each.cpu() for each in self.kept.values()])
        more = {
            "kept": list(self.kept),
            "done": sorted(self.done),
            "left_out": sorted(self.left_out),
        }
        write_tensor_file(path, tensors, {name: json.dumps(each) for name, each in more.items()})

    @classmethod
    def read(cls, path: Path) -> RunningSums:
        """Read such a file.

        Raises:
            DataError: It is not such a file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                more = {name: json.loads(text) for name, text in file.metadata().items()}
                names = list(file.keys())
                tensors = {name: file.get_tensor(name) for name in names}
            kept = dict(zip(more["kept"], tensors.pop("kept", ()), strict=True))
            sums, lists = (
                {
                    name.removeprefix(prefix): values
                    for name, values in tensors.items()
                    if name.startswith(prefix)
                }
                for prefix in ("sum/", "list/")
            )
            return cls(sums, kept, set(more["done"]), set(more["left_out"]), lists)
        except (OSError, SafetensorError, KeyError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path} holds no sums of an analysis ({error}). Start again in another folder."
            ) from error
