"""Training of several small networks as one batched model.

Network by network, the arithmetic is that of a loop with `torch.nn.Linear`, `cross_entropy` and `torch.optim.Adam`:
the loss is the sum of the networks' mean losses, so that each one's gradient is its own; Adam works element by
element; and all that is random is drawn per network, from its own seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_mllm.errors import DataError
from lightning_mllm.probing.probes.networks import initial_weights, logits
from lightning_mllm.probing.probes.probe import Task
from lightning_mllm.probing.probes.seeds import hold_out
from lightning_mllm.probing.probes.stacked_data import StackedData
from lightning_mllm.probing.probes.training import Training
from lightning_mllm.store.seeds import torch_generator

_CHUNK = 1024  # samples per network that are evaluated at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """Networks after training.

    Attributes:
        weights: See `networks`.
        epochs: Trained, per network.
        best_epochs: Whose weights these are, per network, counted from 1.
    """

    weights: list[Tensor]
    epochs: list[int]
    best_epochs: list[int]


def train_together(tasks: Sequence[Task], data: StackedData, sizes: Sequence[int], training: Training) -> Trained:
    """Train a network per task.

    Args:
        tasks: With the same number of samples of each class.
        data: Of these tasks.
        sizes: Of the layers, from the features' width to the number of classes.
        training: How.

    Raises:
        DataError: Early stopping was asked for, but no class has a sample to hold out; or a network diverged.
    """
    parts = [hold_out(task.labels, training.val_fraction, torch_generator(task.seed, "slice")) for task in tasks]
    kept, held = (torch.stack(part) for part in zip(*parts, strict=True))
    if training.val_fraction and not held.numel():
        raise DataError(
            f"Features {tasks[0].name!r}: each class has a single training sample, so that none can be held out for "
            "early stopping. Give more samples, or train a fixed number of epochs with val_fraction 0."
        )
    run = _Run(tasks, data, sizes, training)
    for _ in range(training.max_epochs):
        run.train_epoch(kept)
        if training.val_fraction:
            run.stop_early(held.to(data.device))
        if not len(run.models):
            break
    trained = run.result()
    _check_finite(tasks, trained)
    return trained


def predict(trained: Trained, model: int, features: Tensor, data: StackedData) -> Tensor:
    """Return the classes, on the CPU, that a network gives to features, (samples, width)."""
    weights = [weight[model : model + 1] for weight in trained.weights]
    models = torch.tensor([model], device=data.device)
    with torch.no_grad():
        parts = [logits(weights, data.prepare(part[None].to(data.device), models)) for part in features.split(_CHUNK)]
    return torch.cat(parts, dim=1).argmax(dim=2)[0].cpu()


class _Run:
    """Networks in training; those that have stopped are taken out of it.

    Attributes:
        models: (networks in training,) their positions among the tasks.
    """

    def __init__(self, tasks: Sequence[Task], data: StackedData, sizes: Sequence[int], training: Training) -> None:
        self._data, self._training = data, training
        self._orders = [torch_generator(task.seed, "order") for task in tasks]
        weights = initial_weights(sizes, [torch_generator(task.seed, "weights") for task in tasks], data.dtype)
        self._weights = [weight.to(data.device).requires_grad_() for weight in weights]
        self._optimizer = torch.optim.Adam(self._weights, lr=training.learning_rate, fused=True)
        self.models = torch.arange(len(tasks), device=data.device)
        self._epoch = 0
        self._epochs = torch.zeros_like(self.models)
        self._best_epochs = torch.zeros_like(self.models)
        self._lowest = torch.full((len(tasks),), math.inf, dtype=data.dtype, device=data.device)
        self._best = [weight.detach().clone() for weight in self._weights] if training.val_fraction else []

    def train_epoch(self, kept: Tensor) -> None:
        """Take a step per batch of the rows kept for training, (tasks, samples)."""
        shuffled = [kept[m][torch.randperm(kept.shape[1], generator=self._orders[m])] for m in self.models.tolist()]
        for rows in torch.stack(shuffled).to(self._data.device).split(self._training.batch_size, dim=1):
            self._optimizer.zero_grad()
            self._losses(rows).mean(dim=1).sum().backward()
            self._optimizer.step()
        self._epoch += 1
        self._epochs[self.models] = self._epoch

    @torch.no_grad()
    def stop_early(self, held: Tensor) -> None:
        """Keep the weights that do best on the rows held out, (tasks, samples), and end what no longer improves."""
        losses = torch.cat([self._losses(rows) for rows in held[self.models].split(_CHUNK, dim=1)], dim=1).mean(dim=1)
        better = losses < self._lowest[self.models] - self._training.min_gain
        improved = self.models[better]
        self._lowest[improved] = losses[better]
        self._best_epochs[improved] = self._epoch
        for best, weight in zip(self._best, self._weights, strict=True):
            best[improved] = weight[better]
        going_on = self._epoch - self._best_epochs[self.models] < self._training.patience
        if not going_on.all():
            self._keep(going_on)

    def result(self) -> Trained:
        """Return the best weights, or, without early stopping, the last."""
        if not self._training.val_fraction:
            return Trained(
                weights=[w.detach() for w in self._weights],
                epochs=self._epochs.tolist(),
                best_epochs=self._epochs.tolist(),
            )
        return Trained(weights=self._best, epochs=self._epochs.tolist(), best_epochs=self._best_epochs.tolist())

    def _losses(self, rows: Tensor) -> Tensor:
        """Return the cross-entropy of each sample, (networks in training, samples) like the rows."""
        features, labels = self._data.batch(self.models, rows)
        scores = logits(self._weights, features).flatten(0, 1)
        return F.cross_entropy(scores, labels.flatten(), reduction="none").view(rows.shape)

    def _keep(self, going_on: Tensor) -> None:
        self.models = self.models[going_on]
        states = [self._optimizer.state[weight] for weight in self._weights]
        self._weights = [weight.detach()[going_on].requires_grad_() for weight in self._weights]
        self._optimizer = torch.optim.Adam(self._weights, lr=self._training.learning_rate, fused=True)
        for weight, state in zip(self._weights, states, strict=True):
            moments = {name: state[name][going_on] for name in ("exp_avg", "exp_avg_sq")}
            self._optimizer.state[weight] = {"step": state["step"], **moments}


def _check_finite(tasks: Sequence[Task], trained: Trained) -> None:
    broken = torch.zeros(len(tasks), dtype=torch.bool)
    for weight in trained.weights:
        broken |= ~torch.isfinite(weight).flatten(1).all(dim=1).cpu()
    for task, diverged, best_epoch in zip(tasks, broken.tolist(), trained.best_epochs, strict=True):
        if diverged or not best_epoch:
            largest = float(task.train.features.abs().max())
            raise DataError(
                f"The probe of features {task.name!r} diverged (seed {task.seed}); their largest number is "
                f"{largest:.3g}. Set standardise, or lower the probe's learning rate."
            )
