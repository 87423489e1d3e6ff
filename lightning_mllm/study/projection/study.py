"""What a study is made of, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from lightning_mllm.errors import ConfigError
from lightning_mllm.study.engine.base import BaseStudy, check_files, check_names
from lightning_mllm.study.engine.config_files import config_of, projector_rate

ZERO_SHOT, FT_PROJ, FT_E2E = "zero_shot", "ft_proj", "ft_e2e"


@dataclass(frozen=True, kw_only=True)
class Richness:
    """Which probe's test score is called the richness of the projected features.

    Each cell has to train it on halves of the training samples, too (`ProbeEachEpoch.halves`): they tell how much of a
    richness is chance in the training samples.

    Attributes:
        point: Where the features are tapped and how they are pooled, as `probes.csv` names it.
        probe: Which probe reads them.
        image_point: Where the tower's own features are tapped: if the cells have this point too, the same probe on it
            is the baseline "image-only" of Table 1.
    """

    point: str = "post-mean"
    probe: str = "mlp"
    image_point: str = "pre-mean"


@dataclass(frozen=True, kw_only=True)
class RateSweep:
    """One preset's FT-Proj at several learning rates of the projection.

    Attributes:
        preset: Whose FT-Proj it is; a rate that it, or another preset's FT-Proj of the same configs, has already is not
            run twice.
        rates: The learning rates.
    """

    preset: str
    rates: list[float]


@dataclass(frozen=True, kw_only=True)
class Study(BaseStudy):
    """The grid (checkpoint x domain x policy x preset x seed), and how its results are read.

    A cell is a normal run; its config files are, in this order, `common`, those of the domain, those of the policy.

    Attributes:
        kind: Of study.
        checkpoints: Name -> hub id or folder.
        domains: Name -> config files.
        presets: Name -> policy -> config files. The claims are about the policies `ft_proj` and `ft_e2e`.
        seeds: Each is the seed of everything: training, the order of the data, class lists, splits that are drawn.
        common: Config files of every cell.
        zero_shot: Config files of the cells without training; they ask as the presets do.
        sweep: Learning rates of FT-Proj.
        scorer: How answers become the predictions that tables and claims are about.
        richness: Which probe measures richness; None in a study without probes.
        drift: Whether the cells that train write `drift.csv`.
        resamples: Of every bootstrap.
        keep_checkpoints: Whether the checkpoints of a finished cell stay; an FT-E2E of 7 billion weights takes 80 GB.
    """

    kind: Literal["projection"] = "projection"
    checkpoints: dict[str, str]
    domains: dict[str, list[str]]
    presets: dict[str, dict[str, list[str]]]
    seeds: list[int]
    common: list[str] = field(default_factory=list)
    zero_shot: list[str] = field(default_factory=lambda: ["configs/policy/zero_shot.yaml"])
    sweep: RateSweep | None = None
    scorer: str = "generation"
    richness: Richness | None = None
    drift: bool = False
    resamples: int = 2000
    keep_checkpoints: bool = True

    def rates_of_sweep(self) -> dict[str, float]:
        """Return, by preset, the projection's learning rate of each FT-Proj of the sweep."""
        if self.sweep is None:
            return {}
        preset = self.sweep.preset
        own = projector_rate(config_of(file) for file in [*self.common, *self.presets[preset][FT_PROJ]])
        presets = {} if own is None else {preset: own}
        return presets | {f"{preset}-{rate:g}": rate for rate in self.sweep.rates if rate != own}

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: A name is no plain one, a part of the grid is empty or there twice, or a file is missing.
        """
        for option, names in self._names():
            check_names(option, names)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"seeds are {self.seeds}: give one or more, each once, and none below 0.")
        if self.resamples < 2000:
            raise ConfigError(f"resamples is {self.resamples}; intervals at 95 % need 2000 or more.")
        for preset, policies in self.presets.items():
            if ZERO_SHOT in policies:
                raise ConfigError(
                    f"presets.{preset} has {ZERO_SHOT!r}, which every study has anyway: its config files are the "
                    "option zero_shot."
                )
        if self.sweep is not None:
            self._check_sweep(self.sweep)
        for option, files in self._files():
            check_files(option, files)

    def _names(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield "name", [self.name]
        yield "checkpoints", self.checkpoints
        yield "domains", self.domains
        yield "presets", self.presets
        for preset, policies in self.presets.items():
            yield f"presets.{preset}", policies

    def _files(self) -> Iterator[tuple[str, list[str]]]:
        yield "common", self.common
        yield "zero_shot", self.zero_shot
        yield from ((f"domains.{name}", files) for name, files in self.domains.items())
        for preset, policies in self.presets.items():
            yield from ((f"presets.{preset}.{policy}", files) for policy, files in policies.items())

    def _check_sweep(self, sweep: RateSweep) -> None:
        if FT_PROJ not in self.presets.get(sweep.preset, {}):
            able = [preset for preset, policies in self.presets.items() if FT_PROJ in policies]
            raise ConfigError(
                f"sweep.preset is {sweep.preset!r}, which is no preset with the policy {FT_PROJ}. "
                f"Presets with it: {', '.join(able) or 'none'}."
            )
        if len(set(sweep.rates)) < max(len(sweep.rates), 2) or any(rate <= 0 for rate in sweep.rates):
            raise ConfigError(f"sweep.rates are {sweep.rates}: give two or more different rates above 0.")
