"""Trains several small networks as one batched model.

For each network the arithmetic is that of a loop with `torch.nn.Linear`, `cross_entropy` and
`torch.optim.Adam`. The loss is the sum of the networks' mean losses, so that the gradient of each
is its own; Adam works element by element; and all random numbers of a network come from its own
seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_mllm.errors import DataError
from lightning_mllm.probing.probes.held_out import hold_out
from lightning_mllm.probing.probes.networks import initial_network_weights, network_logits
from lightning_mllm.probing.probes.probe import ProbeTask
from lightning_mllm.probing.probes.stacked_data import StackedData
from lightning_mllm.probing.probes.training import Training
from lightning_mllm.progress import track
from lightning_mllm.store.seeds import torch_generator

_EVALUATED_AT_ONCE = 1024  # samples per network


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedNetworks:
    """Networks after training.

    Attributes:
        weights: Weights of all networks, stacked as in `networks`.
        epochs: Number of epochs of training, per network.
        best_epochs: Epoch that the weights are of, per network, counted from 1.
    """

    weights: list[Tensor]
    epochs: list[int]
    best_epochs: list[int]


def train_networks(
    tasks: Sequence[ProbeTask], data: StackedData, sizes: Sequence[int], training: Training
) -> TrainedNetworks:
    """Train a network per task.

    Args:
        tasks: One per network; all have the same number of samples of each class.
        data: The training samples of these tasks.
        sizes: Sizes of the layers, from the features' width to the number of classes.
        training: Settings of the training.

    Raises:
        DataError: Early stopping was asked for, but no class has a sample to hold out; or a network
            diverged.
    """
    parts = [
        hold_out(task.labels, training.val_fraction, torch_generator(task.seed, "slice"))
        for task in tasks
    ]
    kept, held = (torch.stack(part) for part in zip(*parts, strict=True))
    if training.val_fraction and not held.numel():
        raise DataError(
            f"Features {tasks[0].name!r}: each class has a single training sample, so that none "
            "can be held out for early stopping. Give more samples, or train a fixed number of "
            "epochs with val_fraction 0."
        )
    run = _Run(tasks, data, sizes, training)
    for _ in track(range(training.max_epochs), "Training probes: epochs, at most"):
        run.train_epoch(kept)
        if training.val_fraction:
            run.stop_early(held.to(data.device))
        if not len(run.models):
            break
    trained = run.result()
    _check_finite(tasks, trained)
    return trained


@torch.no_grad()
def predict_with_trained(
    trained: TrainedNetworks, model: int, features: Tensor, data: StackedData
) -> Tensor:
    """Return the classes, on the CPU, that a network gives to features, (samples, width)."""
    weights = [weight[model : model + 1] for weight in trained.weights]
    models = torch.tensor([model], device=data.device)
    scores = []
    for part in features.split(_EVALUATED_AT_ONCE):
        prepared = data.prepare(part[None].to(data.device), models)
        scores.append(network_logits(weights, prepared))
    return torch.cat(scores, dim=1).argmax(dim=2)[0].cpu()


class _Run:
    """Networks in training; those that have stopped are removed.

    Attributes:
        models: (networks in training,) their positions among the tasks.
    """

    def __init__(
        self,
        tasks: Sequence[ProbeTask],
        data: StackedData,
        sizes: Sequence[int],
        training: Training,
    ) -> None:
        self._data, self._training = data, training
        self._orders = [torch_generator(task.seed, "order") for task in tasks]
        weights = initial_network_weights(
            sizes, [torch_generator(task.seed, "weights") for task in tasks], data.dtype
        )
        self._weights = [weight.to(data.device).requires_grad_() for weight in weights]
        self._optimizer = self._make_adam()
        self.models = torch.arange(len(tasks), device=data.device)
        self._epoch = 0
        self._epochs = torch.zeros_like(self.models)
        self._best_epochs = torch.zeros_like(self.models)
        self._lowest = torch.full((len(tasks),), math.inf, dtype=data.dtype, device=data.device)
        self._best: list[Tensor] = []  # kept with early stopping only
        if training.val_fraction:
            self._best = [weight.detach().clone() for weight in self._weights]

    def _make_adam(self) -> torch.optim.Adam:
        return torch.optim.Adam(self._weights, lr=self._training.learning_rate, fused=True)

    def train_epoch(self, kept: Tensor) -> None:
        """Take a step per batch of the rows kept for training, (tasks, samples)."""
        shuffled = []
        for model in self.models.tolist():
            order = torch.randperm(kept.shape[1], generator=self._orders[model])
            shuffled.append(kept[model][order])
        epoch = torch.stack(shuffled).to(self._data.device)
        for rows in epoch.split(self._training.batch_size, dim=1):
            self._optimizer.zero_grad()
            self._losses(rows).mean(dim=1).sum().backward()
            self._optimizer.step()
        self._epoch += 1
        self._epochs[self.models] = self._epoch

    @torch.no_grad()
    def stop_early(self, held: Tensor) -> None:
        """Keep the weights with the lowest held-out loss; stop what no longer improves.

        Args:
            held: (tasks, samples), rows of each task's train split.
        """
        parts = held[self.models].split(_EVALUATED_AT_ONCE, dim=1)
        losses = torch.cat([self._losses(rows) for rows in parts], dim=1).mean(dim=1)
        better = losses < self._lowest[self.models] - self._training.min_gain
        improved = self.models[better]
        self._lowest[improved] = losses[better]
        self._best_epochs[improved] = self._epoch
        for best, weight in zip(self._best, self._weights, strict=True):
            best[improved] = weight[better]
        going_on = self._epoch - self._best_epochs[self.models] < self._training.patience
        if not going_on.all():
            self._keep(going_on)

    def result(self) -> TrainedNetworks:
        """Return the best weights, or, without early stopping, the last."""
        epochs = self._epochs.tolist()
        if not self._training.val_fraction:
            weights = [weight.detach() for weight in self._weights]
            return TrainedNetworks(weights=weights, epochs=epochs, best_epochs=epochs)
        return TrainedNetworks(
            weights=self._best, epochs=epochs, best_epochs=self._best_epochs.tolist()
        )

    def _losses(self, rows: Tensor) -> Tensor:
        """Return the cross-entropy of each sample, (networks in training, samples) as rows has."""
        features, labels = self._data.batch(self.models, rows)
        scores = network_logits(self._weights, features).flatten(0, 1)
        return F.cross_entropy(scores, labels.flatten(), reduction="none").view(rows.shape)

    def _keep(self, going_on: Tensor) -> None:
        """Go on with some of the networks, (networks in training,) bool, and their Adam state."""
        self.models = self.models[going_on]
        states = [self._optimizer.state[weight] for weight in self._weights]
        self._weights = [weight.detach()[going_on].requires_grad_() for weight in self._weights]
        self._optimizer = self._make_adam()
        for weight, state in zip(self._weights, states, strict=True):
            moments = {name: state[name][going_on] for name in ("exp_avg", "exp_avg_sq")}
            self._optimizer.state[weight] = {"step": state["step"], **moments}


def _check_finite(tasks: Sequence[ProbeTask], trained: TrainedNetworks) -> None:
    """Refuse weights that are not finite, and networks whose loss never was."""
    broken = torch.zeros(len(tasks), dtype=torch.bool)
    for weight in trained.weights:
        broken |= ~torch.isfinite(weight).flatten(1).all(dim=1).cpu()
    for task, diverged, best_epoch in zip(tasks, broken.tolist(), trained.best_epochs, strict=True):
        if diverged or not best_epoch:
            largest = float(task.train.features.abs().max())
            raise DataError(
                f"The probe of features {task.name!r} diverged (seed {task.seed}); their largest "
                f"number is {largest:.3g}. Set standardise, or lower the probe's learning rate."
            )
