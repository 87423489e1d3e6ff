"""The cells of a study: which there are, how each is called, and which command line runs it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lightning_mllm.errors import ConfigError
from lightning_mllm.study.config import FT_PROJ, ZERO_SHOT, Study

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid.

    Attributes:
        checkpoint: Name of the checkpoint.
        domain: Name of the domain.
        policy: What is trained; `zero_shot` trains nothing.
        preset: How it is trained; empty for zero-shot.
        seed: Of everything.
        source: Hub id or folder of the checkpoint.
        configs: Config files, in the order in which they count.
        rate: Learning rate of the projection in place of that of the configs.
    """

    checkpoint: str
    domain: str
    policy: str
    preset: str
    seed: int
    source: str
    configs: tuple[str, ...]
    rate: float | None = None

    @property
    def id(self) -> str:
        """Name of the cell and of its folder."""
        preset = [self.preset] if self.preset else []
        return ".".join([self.checkpoint, self.domain, *preset, self.policy, f"seed{self.seed}"])

    @property
    def trains(self) -> bool:
        """Whether the cell is a fit, or only a test."""
        return self.policy != ZERO_SHOT

    def arguments(self) -> list[str]:
        """Return the command line that decides the cell's results; where they go is no part of it."""
        chosen = [part for file in self.configs for part in ("--config", file)]
        rate = [] if self.rate is None else ["--model.learning_rates.projector", repr(self.rate)]
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


def cells_of(study: Study) -> list[Cell]:
    """Return all cells; seed by seed, so that a study that is stopped early has something of everything."""
    return [
        cell
        for seed in study.seeds
        for checkpoint in study.checkpoints
        for domain in study.domains
        for cell in _cells_of_a_domain(study, checkpoint, domain, seed)
    ]


def rates_of_sweep(study: Study) -> dict[str, float]:
    """Return, by preset, the projection's learning rate of each FT-Proj of the sweep."""
    if study.sweep is None:
        return {}
    own = _projector_rate([*study.common, *study.presets[study.sweep.preset][FT_PROJ]])
    presets = {} if own is None else {study.sweep.preset: own}
    return presets | {f"{study.sweep.preset}-{rate:g}": rate for rate in study.sweep.rates if rate != own}


def share_of(cells: Sequence[Item], share: str) -> list[Item]:
    """Return the share of one machine, e.g. "3/8": the 3rd cell, the 11th, ...

    Raises:
        ConfigError: It is no such share.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", share)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(
            f"--cells is {share!r}; it says which part of how many, e.g. 3/8 for the third of eight, counted from 1. "
            "In a SLURM array that starts at 1 (--array=1-8): --cells $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT."
        )
    return list(cells[int(match[1]) - 1 :: int(match[2])])


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
        for preset, rate in rates_of_sweep(study).items():
            if preset != study.sweep.preset:
                yield cell(FT_PROJ, preset, study.presets[study.sweep.preset][FT_PROJ], rate)


def _projector_rate(configs: Sequence[str]) -> float | None:
    """Return the projection's learning rate that config files give; None where they give none."""
    rate: float | None = None
    for file in configs:
        node: Any = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        for key in ("model", "learning_rates", "projector"):
            node = node.get(key) if isinstance(node, Mapping) else None
        rate = rate if node is None else float(node)
    return rate
