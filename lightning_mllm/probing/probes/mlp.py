"""The MLP probe: the classifier of Verma et al., ACL 2024, scaled to the width of the features."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from lightning_mllm.errors import ConfigError
from lightning_mllm.probing.probes.network_training import predict_with_trained, train_networks
from lightning_mllm.probing.probes.networks import (
    POST_PROJECTION,
    PRE_PROJECTION,
    NetworkLayout,
    network_parameter_count,
)
from lightning_mllm.probing.probes.probe import BatchedProbe, ProbeFit, ProbeTask, cut_probe_tasks
from lightning_mllm.probing.probes.stacked_data import StackedData
from lightning_mllm.probing.probes.training import PRESETS, Preset, Training


@dataclass(frozen=True, kw_only=True)
class MLPProbe(BatchedProbe):
    """The paper's classifier, scaled to the width of the features (Verma et al., appendix A).

    For features of 4096 numbers its layers are 4096-2048-1536-1024-512-256-classes, with ReLU
    between them. For other widths each hidden layer is scaled in proportion, rounded, to at least
    16. So the capacity that a probe has per feature is the same before and after the projection.

    By default it is trained on standardised features until early stopping ends it. The presets
    "paper" and "released-code" repeat the paper, whose features are not standardised. They were
    made for thousands of samples of 4096 numbers and stop too soon where there are fewer of both:
    on the 1,078 scans of the quickstart, with features of 128 numbers, "paper" has an accuracy of
    0.58, "released-code" of 0.72, the default of 0.84, and a linear probe of 0.91.

    Attributes:
        training: Settings of the training: a preset's name, or all of them.
        network: "pre-projection" is the paper's other network, 1024-2000-3600-1024-600-256-classes,
            scaled in the same way. With it, a comparison of features before and after the
            projection is also one of networks; it exists to repeat the paper's table 3.

    Raises:
        ConfigError: There is no such preset.
    """

    kind: ClassVar[str] = "mlp"
    remedy: ClassVar[str] = (
        "Give it more epochs (training.max_epochs) or another learning rate, or use a LinearProbe."
    )
    training: Preset | Training = "converging"
    standardise: bool = True
    network: Literal["post-projection", "pre-projection"] = "post-projection"

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not isinstance(self.training, Training) and self.training not in PRESETS:
            raise ConfigError(
                f"training is {self.training!r}; give one of {', '.join(PRESETS)}, or the settings."
            )

    @property
    def layout(self) -> NetworkLayout:
        """Hidden sizes of the network."""
        return POST_PROJECTION if self.network == "post-projection" else PRE_PROJECTION

    def _differences(self) -> list[str]:
        default = type(self)
        names: list[str] = [] if self.network == default.network else [self.network]
        if self.training != default.training:
            names.append("custom" if isinstance(self.training, Training) else self.training)
        return [*names, *super()._differences()]

    def fit_predict(self, tasks: Sequence[ProbeTask]) -> list[ProbeFit]:
        """Train one network per task, networks of one shape and equal class sizes together.

        Raises:
            DataError: A network diverged, or there is no sample to hold out.
        """
        alike: defaultdict[object, list[int]] = defaultdict(list)
        for position, task in enumerate(tasks):
            features, classes = task.train.features, len(task.train.names)
            class_sizes = tuple(task.train.targets.bincount(minlength=classes).tolist())
            alike[features.shape[1], features.dtype, classes, class_sizes].append(position)
        fits: dict[int, ProbeFit] = {}
        for positions in alike.values():
            for part in cut_probe_tasks(positions, self.models_at_once):
                fits |= zip(part, self._fit([tasks[position] for position in part]), strict=True)
        return [fits[position] for position in range(len(tasks))]

    def _fit(self, tasks: Sequence[ProbeTask]) -> list[ProbeFit]:
        """Train the networks of some tasks at once."""
        data = StackedData(tasks, self.standardise, self.torch_device())
        sizes = self.layout.sizes(tasks[0].train.width, len(tasks[0].train.names))
        training = self.training
        if not isinstance(training, Training):
            training = PRESETS[training]
        trained = train_networks(tasks, data, sizes, training)
        fits = []
        for model, task in enumerate(tasks):
            epochs, best_epoch = trained.epochs[model], trained.best_epochs[model]
            fits.append(
                ProbeFit(
                    predicted=predict_with_trained(trained, model, task.test, data),
                    parameters=network_parameter_count(sizes),
                    epochs=epochs,
                    best_epoch=best_epoch,
                    converged=_has_converged(training, task, epochs, best_epoch),
                )
            )
        return fits


def _has_converged(
    training: Training, task: ProbeTask, epochs: int, best_epoch: int
) -> bool | None:
    """Return whether early stopping ended the training, after something was learnt.

    Where the first epoch is the best, the loss on held-out samples has risen from the start. From
    shuffled labels there is nothing to learn.
    """
    is_control = not torch.equal(task.labels, task.train.targets)
    return training.converged(epochs, best_epoch) and (best_epoch > 1 or is_control)
