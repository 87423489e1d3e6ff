"""The cells of the projection study: which there are, their names, and their command lines."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_mllm.study.engine.base import BaseCell, TimeKeys
from lightning_mllm.study.engine.cell_folder import CellFolder
from lightning_mllm.study.projection.rates import RATE
from lightning_mllm.study.projection.study import FT_PROJ, ZERO_SHOT, ProjectionStudy

# policy, its config files, a rate of the sweep
Training = tuple[str, tuple[str, ...], float | None]


@dataclass(frozen=True, kw_only=True)
class ProjectionCell(BaseCell):
    """One run of the grid.

    Attributes:
        checkpoint: Name of the checkpoint.
        domain: Name of the domain.
        policy: Which parts are trained; `zero_shot` trains nothing.
        preset: How they are trained; empty for zero-shot.
        seed: Seed of everything in the run.
        rate: Learning rate of the projection, in place of that of the configs.
        also: Further presets whose run this is, since they train the policy in the same way.
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
    def time_keys(self) -> TimeKeys:
        """All but the seed; the policy alone."""
        return (self.checkpoint, self.domain, self.policy, self.preset), (self.policy,)

    @property
    def order(self) -> tuple[str | int, ...]:
        """The key by which cells are sorted before they are dealt to machines."""
        return self.policy, self.preset, self.checkpoint, self.domain, self.seed

    @property
    def note(self) -> str:
        """Which further presets the cell belongs to."""
        return f"also {', '.join(self.also)}" if self.also else ""

    @property
    def presets(self) -> tuple[str, ...]:
        """All presets that the cell belongs to."""
        return (self.preset, *self.also)

    @property
    def trains(self) -> bool:
        """Whether the cell is a fit, or only a test."""
        return self.policy != ZERO_SHOT

    def arguments(self) -> list[str]:
        """Return the command line that decides the cell's results."""
        arguments = [
            "fit" if self.trains else "test",
            *self.config_arguments(),
            *("--model.checkpoint", self.source),
            *("--seed_everything", str(self.seed)),
            *("--data.init_args.seed", str(self.seed)),
            *("--data.init_args.prompt.init_args.seed", str(self.seed)),  # of the class lists
        ]
        if self.rate is not None:
            arguments += [f"--{RATE}", repr(self.rate)]
        if self.trains:
            arguments += ["--test_after", "true"]
        return arguments


ProjectionFolder = CellFolder[ProjectionCell]


def projection_cells(study: ProjectionStudy) -> list[ProjectionCell]:
    """Return all cells, seed by seed: a study that is stopped early has some of everything."""
    cells = []
    trainings = _trainings_of(study)
    for seed in study.seeds:
        for checkpoint, source in study.checkpoints.items():
            for domain, files in study.domains.items():
                for (policy, configs, rate), presets in trainings.items():
                    cell = ProjectionCell(
                        checkpoint=checkpoint,
                        domain=domain,
                        policy=policy,
                        preset=presets[0],
                        seed=seed,
                        source=source,
                        configs=(*study.common, *files, *configs),
                        rate=rate,
                        also=tuple(presets[1:]),
                    )
                    cells.append(cell)
    return cells


def _trainings_of(study: ProjectionStudy) -> dict[Training, list[str]]:
    """Return the trainings of a domain, with the presets that each belongs to."""
    found: dict[Training, list[str]] = {(ZERO_SHOT, tuple(study.zero_shot), None): [""]}
    for preset, policies in study.presets.items():
        for policy, configs in policies.items():
            found.setdefault((policy, tuple(configs), None), []).append(preset)
    if study.sweep is not None:
        swept = study.sweep.preset
        presets_by_rate = {study.rate_of(preset): preset for preset in reversed(study.sweep.also)}
        for name, rate in study.rates_of_sweep().items():
            training: Training = (FT_PROJ, tuple(study.presets[swept][FT_PROJ]), rate)
            if rate in presets_by_rate:
                same = presets_by_rate[rate]
                training = (FT_PROJ, tuple(study.presets[same][FT_PROJ]), None)
            if name != swept:
                found.setdefault(training, []).append(name)
    return found
