"""The cells of a study: which there are, how each is called, and which command line runs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from lightning_mllm.study.engine.base import BaseCell
from lightning_mllm.study.engine.cell_folder import Folder
from lightning_mllm.study.engine.config_files import RATE, config_of, projector_rate, without_projector_rate
from lightning_mllm.study.projection.study import FT_PROJ, ZERO_SHOT, Study


@dataclass(frozen=True, kw_only=True)
class Cell(BaseCell):
    """One run of the grid.

    Attributes:
        checkpoint: Name of the checkpoint.
        domain: Name of the domain.
        policy: What is trained; `zero_shot` trains nothing.
        preset: How it is trained; empty for zero-shot.
        seed: Of everything.
        rate: Learning rate of the projection in place of that of the configs.
        also: Further presets under which the policy would be trained in the very same way, so that this is their
            cell, too.
    """

    checkpoint: str
    domain: str
    policy: str
    preset: str
    seed: int
    rate: float | None = None
    also: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Name of the cell and of its folder."""
        preset = [self.preset] if self.preset else []
        return ".".join([self.checkpoint, self.domain, *preset, self.policy, f"seed{self.seed}"])

    @property
    def likeness(self) -> tuple[tuple[object, ...], ...]:
        """What cells share that take about as long: those that are the most alike first."""
        return (
            (self.checkpoint, self.domain, self.policy, self.preset),
            (self.checkpoint, self.domain, self.policy),
            (self.domain, self.policy),
            (self.checkpoint, self.policy),
            (self.domain, self.trains),
            (self.trains,),
        )

    @property
    def order(self) -> tuple[str | int, ...]:
        """By which cells are sorted, to be dealt to machines."""
        return self.policy, self.preset, self.checkpoint, self.domain, self.seed

    @property
    def note(self) -> str:
        """Under which presets the cell is run, too."""
        return f"also {', '.join(self.also)}" if self.also else ""

    @property
    def presets(self) -> tuple[str, ...]:
        """All presets of which this is the cell."""
        return (self.preset, *self.also)

    @property
    def trains(self) -> bool:
        """Whether the cell is a fit, or only a test."""
        return self.policy != ZERO_SHOT

    def arguments(self) -> list[str]:
        """Return the command line that decides the cell's results; where they go is no part of it."""
        chosen = [part for file in self.configs for part in ("--config", file)]
        rate = [] if self.rate is None else [f"--{'.'.join(RATE)}", repr(self.rate)]
        return [
            "fit" if self.trains else "test",
            *chosen,
            *("--model.checkpoint", self.source),
            *("--seed_everything", str(self.seed)),
            *("--data.init_args.seed", str(self.seed)),
            *("--data.init_args.prompt.init_args.seed", str(self.seed)),  # of the class lists
            *rate,
            *(["--test_after", "true"] if self.trains else []),
        ]


CellFolder = Folder[Cell]


def cells_of(study: Study) -> list[Cell]:
    """Return all cells; seed by seed, so that a study that is stopped early has something of everything.

    Cells that differ in nothing but the name of their preset are one, of the first of these presets.
    """
    unique: dict[str, Cell] = {}
    read = cache(config_of)
    for seed in study.seeds:
        for checkpoint in study.checkpoints:
            for domain in study.domains:
                for cell in _cells_of_a_domain(study, checkpoint, domain, seed):
                    key = _identity(cell, read)
                    first = unique.get(key)
                    unique[key] = cell if first is None else replace(first, also=(*first.also, cell.preset))
    return list(unique.values())


def _cells_of_a_domain(study: Study, checkpoint: str, domain: str, seed: int) -> Iterator[Cell]:
    def cell(policy: str, preset: str, configs: Sequence[str], rate: float | None = None) -> Cell:
        return Cell(
            checkpoint=checkpoint,
            domain=domain,
            policy=policy,
            preset=preset,
            seed=seed,
            source=study.checkpoints[checkpoint],
            configs=(*study.common, *study.domains[domain], *configs),
            rate=rate,
        )

    yield cell(ZERO_SHOT, "", study.zero_shot)
    for preset, policies in study.presets.items():
        yield from (cell(policy, preset, configs) for policy, configs in policies.items())
    if study.sweep is not None:
        for preset, rate in study.rates_of_sweep().items():
            if preset != study.sweep.preset:
                yield cell(FT_PROJ, preset, study.presets[study.sweep.preset][FT_PROJ], rate)


def _identity(cell: Cell, read: Callable[[str], Any]) -> str:
    """Return what is the same for two cells that are made in the same way, whatever their files are called."""
    contents = [read(file) for file in cell.configs]
    rate = projector_rate(contents) if cell.rate is None else cell.rate
    names = [cell.checkpoint, cell.domain, cell.policy, cell.seed]
    return json.dumps([names, rate, *map(without_projector_rate, contents)], sort_keys=True, default=str)
