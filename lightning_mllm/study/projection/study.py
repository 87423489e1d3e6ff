"""What the projection study is made of, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lightning_mllm.errors import ConfigError
from lightning_mllm.study.engine.checks import (
    check_study_files,
    check_study_names,
    check_study_resamples,
)
from lightning_mllm.study.engine.runnable import RunnableStudy
from lightning_mllm.study.projection.rates import RATE, projector_rate, without_rate

ZERO_SHOT, FT_PROJ, FT_E2E = "zero_shot", "ft_proj", "ft_e2e"


@dataclass(frozen=True, kw_only=True)
class ProjectionStudyRichness:
    """Which probe's test score is called the richness of the projected features.

    Each cell must also train it on halves of the training samples (`ProbeEachEpoch.halves`). They
    show how much of a richness is due to the choice of training samples.

    Attributes:
        point: Where the features are tapped and how they are pooled, as `probes.csv` names it.
        probe: Which probe reads the features, as `probes.csv` names it.
        image_point: Where the tower's own features are tapped. If the cells have this point too,
            the same probe on it is the baseline "image-only" of Table 1.
    """

    point: str = "post-mean"
    probe: str = "mlp"
    image_point: str = "pre-mean"


@dataclass(frozen=True, kw_only=True)
class ProjectionStudyRates:
    """FT-Proj of one preset at several learning rates of the projection.

    Attributes:
        preset: Preset whose FT-Proj is repeated; the rate that it has itself is not run again.
        rates: Learning rates of the projection.
        also: Presets whose FT-Proj differs from that of `preset` in the rate alone. A rate that one
            of them has is not run again.
    """

    preset: str
    rates: list[float]
    also: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ProjectionStudy(RunnableStudy):
    """The grid (checkpoint x domain x policy x preset x seed), and how its results are read.

    A cell is a normal run. Its config files are, in this order, `common`, those of the domain, and
    those of the policy. Policies of two presets with the same config files are run once.

    Attributes:
        kind: Which kind of study it is; `projection` for this one.
        checkpoints: Name -> hub id or folder.
        domains: Name -> config files.
        presets: Name -> policy -> config files. The claims are about the policies `ft_proj` and
            `ft_e2e`.
        seeds: Seeds of the runs. Each is used for everything: training, the order of the data,
            class lists, splits that are drawn.
        common: Config files of every cell.
        zero_shot: Config files of the cells without training; they ask as the presets do.
        sweep: Learning rates at which FT-Proj is repeated.
        scorer: How answers become the predictions that tables and claims are about.
        richness: Which probe measures richness; null in a study without probes.
        drift: Whether the cells that train write `drift.csv`.
        resamples: Number of resamples of every bootstrap.
        keep_checkpoints: Whether the checkpoints of a finished cell stay. FT-E2E of 7 billion
            weights takes 80 GB.
    """

    kind: Literal["projection"] = "projection"
    checkpoints: dict[str, str]
    domains: dict[str, list[str]]
    presets: dict[str, dict[str, list[str]]]
    seeds: list[int]
    common: list[str] = field(default_factory=list)
    zero_shot: list[str] = field(default_factory=lambda: ["configs/policy/zero_shot.yaml"])
    sweep: ProjectionStudyRates | None = None
    scorer: str = "generation"
    richness: ProjectionStudyRichness | None = None
    drift: bool = False
    resamples: int = 2000
    keep_checkpoints: bool = True

    def rates_of_sweep(self) -> dict[str, float]:
        """Return, by preset, the projection's learning rate of each FT-Proj of the sweep."""
        if self.sweep is None:
            return {}
        rates = {}
        own = self.rate_of(self.sweep.preset)
        if own is not None:
            rates[self.sweep.preset] = own
        for rate in self.sweep.rates:
            if rate != own:
                rates[f"{self.sweep.preset}-{rate:g}"] = rate
        return rates

    def rate_of(self, preset: str) -> float | None:
        """Return the projection's learning rate in the config files of a preset's FT-Proj."""
        return projector_rate([*self.common, *self.presets[preset][FT_PROJ]])

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: A name has other characters than a cell's id, a part of the grid is empty
                or there twice, or a file is missing.
        """
        check_study_names("name", [self.name])
        check_study_names("checkpoints", self.checkpoints)
        check_study_names("domains", self.domains)
        check_study_names("presets", self.presets)
        for preset, policies in self.presets.items():
            check_study_names(f"presets.{preset}", policies)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(
                f"seeds are {self.seeds}: give one or more, each once, and none below 0."
            )
        check_study_resamples(self.resamples)
        for preset, policies in self.presets.items():
            if ZERO_SHOT in policies:
                raise ConfigError(
                    f"presets.{preset} has {ZERO_SHOT!r}, which every study has anyway: its config "
                    "files are the option zero_shot."
                )
        if self.sweep is not None:
            self._check_sweep(self.sweep)
        self._check_files()
        if self.sweep is not None:
            for preset in self.sweep.also:
                self._check_differs_in_rate_alone(preset, self.sweep.preset)

    def _check_sweep(self, sweep: ProjectionStudyRates) -> None:
        able = [preset for preset, policies in self.presets.items() if FT_PROJ in policies]
        for option, presets in (("preset", [sweep.preset]), ("also", sweep.also)):
            for preset in presets:
                if preset not in able:
                    raise ConfigError(
                        f"sweep.{option} has {preset!r}, which is not a preset with the policy "
                        f"{FT_PROJ}. Presets with it: {', '.join(able) or 'none'}."
                    )
        different = set(sweep.rates)
        if len(different) < max(len(sweep.rates), 2) or min(different) <= 0:
            raise ConfigError(
                f"sweep.rates are {sweep.rates}: give two or more different rates above 0."
            )

    def _check_differs_in_rate_alone(self, preset: str, swept: str) -> None:
        """Refuse a preset that stands for a rate of the sweep but has other settings, too."""
        first, second = (without_rate(self.presets[name][FT_PROJ]) for name in (preset, swept))
        if first != second:
            raise ConfigError(
                f"sweep.also names the preset {preset!r}, whose {FT_PROJ} differs from that of "
                f"{swept!r} in more than {RATE}. Take it out of sweep.also, or make the rest equal."
            )

    def _check_files(self) -> None:
        check_study_files("common", self.common)
        check_study_files("zero_shot", self.zero_shot)
        for name, files in self.domains.items():
            check_study_files(f"domains.{name}", files)
        for preset, policies in self.presets.items():
            for policy, files in policies.items():
                check_study_files(f"presets.{preset}.{policy}", files)
