"""Probes that fit several seeds and feature sets at once, and the paper's MLP."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from lightning_mllm.errors import ConfigError
from lightning_mllm.probing.probes.batched import predict, train_together
from lightning_mllm.probing.probes.networks import POST_PROJECTION, PRE_PROJECTION, Layout, parameter_count
from lightning_mllm.probing.probes.probe import Fit, Probe, Task
from lightning_mllm.probing.probes.stacked_data import StackedData
from lightning_mllm.probing.probes.training import PRESETS, Preset, Training


@dataclass(frozen=True, kw_only=True)
class BatchedProbe(Probe):
    """A probe of which several seeds and feature sets are fitted at once.

    Attributes:
        standardise: Train and test features minus the mean of the train split, divided by its standard deviation.
        device: "auto" is the GPU if there is one.
        models_at_once: The most that are fitted at once; it bounds memory and changes no result but for rounding. A
            network of the paper's takes 55 MB and five times that in training.
    """

    standardise: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    models_at_once: int = 20

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: One is out of its range.
        """
        super().__post_init__()
        if self.models_at_once < 1:
            raise ConfigError(f"models_at_once is {self.models_at_once}; it must be at least 1.")

    @property
    def name(self) -> str:
        """The label, or else the kind with what differs from its defaults, e.g. `mlp-released-code-standardised`."""
        return self.label or "-".join([self.kind, *self._differences()])

    def torch_device(self) -> torch.device:
        """Return where to fit.

        Raises:
            ConfigError: There is no such device.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device is 'cuda', but torch sees no GPU. Give 'auto' or 'cpu'.")
        return torch.device(self.device)

    def _differences(self) -> list[str]:
        if self.standardise == type(self).standardise:
            return []
        return ["standardised" if self.standardise else "raw"]


@dataclass(frozen=True, kw_only=True)
class MLPProbe(BatchedProbe):
    """The paper's classifier, scaled to the width of the features (Verma et al., ACL 2024, appendix A.2 and A.3).

    For features of 4096 numbers its layers are 4096-2048-1536-1024-512-256-classes, with ReLU between. For other widths
    each hidden layer is scaled in proportion, rounded, to at least 16: so the capacity that a probe has per feature
    is the same before and after the projection.

    By default it is trained until early stopping ends it, on standardised features. The presets "paper" and
    "released-code" are there to repeat the paper, whose features are not standardised. Made for thousands of samples of
    4096 numbers, they stop too soon where there is less of both: on the 1,078 scans of the quickstart, with features of
    128 numbers, "paper" reads an accuracy of 0.58 and "released-code" one of 0.72, the default one of 0.84, and a
    linear probe 0.91.

    Attributes:
        training: A preset's name, or all settings.
        network: "pre-projection" has the other network of the paper, 1024-2000-3600-1024-600-256-classes, scaled
            likewise. With it the paper's comparison of features before and after the projection is one of networks,
            too; it is there to repeat their table 3.
    """

    kind: ClassVar[str] = "mlp"
    remedy: ClassVar[str] = "Give it more epochs (training.max_epochs), or a higher learning rate."
    training: Preset | Training = "converging"
    standardise: bool = True
    network: Literal["post-projection", "pre-projection"] = "post-projection"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: One is out of its range.
        """
        super().__post_init__()
        if not isinstance(self.training, Training) and self.training not in PRESETS:
            raise ConfigError(f"training is {self.training!r}; give one of {', '.join(PRESETS)}, or the settings.")

    @property
    def layout(self) -> Layout:
        """Hidden sizes of the network."""
        return {"post-projection": POST_PROJECTION, "pre-projection": PRE_PROJECTION}[self.network]

    def _differences(self) -> list[str]:
        default = type(self)
        names: list[str] = [] if self.network == default.network else [self.network]
        if self.training != default.training:
            names.append("custom" if isinstance(self.training, Training) else self.training)
        return [*names, *super()._differences()]

    def fit_predict(self, tasks: Sequence[Task]) -> list[Fit]:
        """See `Probe.fit_predict`.

        Raises:
            DataError: A network diverged, or there is no sample to hold out.
        """
        groups: defaultdict[object, list[int]] = defaultdict(list)
        for position, task in enumerate(tasks):
            features = task.train.features
            groups[features.shape[1], features.dtype, len(task.train.names), _class_sizes(task)].append(position)
        fits: dict[int, Fit] = {}
        for group in groups.values():
            for start in range(0, len(group), self.models_at_once):
                part = group[start : start + self.models_at_once]
                fits |= zip(part, self._fit([tasks[position] for position in part]), strict=True)
        return [fits[position] for position in range(len(tasks))]

    def _fit(self, tasks: Sequence[Task]) -> list[Fit]:
        data = StackedData(tasks, self.standardise, self.torch_device())
        sizes = self.layout.sizes(tasks[0].train.width, len(tasks[0].train.names))
        training = self.training if isinstance(self.training, Training) else PRESETS[self.training]
        trained = train_together(tasks, data, sizes, training)
        return [
            Fit(
                predicted=predict(trained, model, task.test, data),
                parameters=parameter_count(sizes),
                epochs=trained.epochs[model],
                best_epoch=trained.best_epochs[model],
                converged=training.converged(trained.epochs[model], trained.best_epochs[model]),
            )
            for model, task in enumerate(tasks)
        ]


def _class_sizes(task: Task) -> tuple[int, ...]:
    return tuple(task.train.targets.bincount(minlength=len(task.train.names)).tolist())
