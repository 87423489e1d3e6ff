"""The linear probe: logistic regression, solved to its optimum."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.probing.probes.logistic import TOLERANCE, Axes, Solution, on_axes, solve
from lightning_mllm.probing.probes.probe import Fit, Task
from lightning_mllm.probing.probes.seeds import hold_out
from lightning_mllm.probing.probes.stacked_data import moments
from lightning_mllm.probing.probes.trained import BatchedProbe
from lightning_mllm.store.seeds import torch_generator

_HELD_OUT = 0.1  # of each class, to choose the penalty
_ROUGH = 1e-4  # length of the gradient at which a penalty is judged by, in float32
_PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True, kw_only=True)
class LinearProbe(BatchedProbe):
    """Logistic regression with an L2 penalty: what can be read from the features without a hidden layer.

    It is convex: a penalty and the training samples decide the solution, whatever the seed. The seed decides which
    tenth of each class is held out to choose the penalty, the one with the lowest mean loss on them. The regression
    with it, on all training samples, is the probe. It has converged when the length of its gradient is 1e-5 or less.

    Attributes:
        penalties: To choose from, relative to the mean squared length of the features around their mean, so that their
            scale is no matter. Of a single one nothing is chosen, and the seed is no matter.
        max_iterations: Of the solver, after which a fit that has not converged stops, and says so.
    """

    kind: ClassVar[str] = "linear"
    remedy: ClassVar[str] = "Raise max_iterations, or leave out the weakest penalties."
    standardise: bool = True
    penalties: tuple[float, ...] = _PENALTIES
    max_iterations: int = 2000

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: One is out of its range.
        """
        super().__post_init__()
        if not self.penalties or min(self.penalties) <= 0 or len(set(self.penalties)) < len(self.penalties):
            raise ConfigError(f"penalties are {self.penalties}; give one or more, all different and above 0.")
        if self.max_iterations < 1:
            raise ConfigError(f"max_iterations is {self.max_iterations}; it must be at least 1.")

    def _differences(self) -> list[str]:
        default = type(self)
        custom = (self.penalties, self.max_iterations) != (default.penalties, default.max_iterations)
        return [*(["custom"] if custom else []), *super()._differences()]

    def fit_predict(self, tasks: Sequence[Task]) -> list[Fit]:
        """See `Probe.fit_predict`.

        Raises:
            DataError: There are penalties to choose from, but no sample to hold out.
        """
        of_set: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # of the same features, train and test
        for position, task in enumerate(tasks):
            of_set[id(task.train), id(task.test)].append(position)
        alike: defaultdict[object, list[list[int]]] = defaultdict(list)  # sets that are solved together
        for positions in of_set.values():
            for start in range(0, len(positions), self.models_at_once):
                part = positions[start : start + self.models_at_once]
                train, test = tasks[part[0]].train, tasks[part[0]].test
                alike[train.features.shape, test.shape, len(train.names), len(part)].append(part)
        fits: dict[int, Fit] = {}
        for parts in alike.values():
            sets_at_once = max(1, self.models_at_once // len(parts[0]))
            for start in range(0, len(parts), sets_at_once):
                chosen = parts[start : start + sets_at_once]
                found = self._fit([[tasks[position] for position in part] for part in chosen])
                fits |= zip([position for part in chosen for position in part], found, strict=True)
        return [fits[position] for position in range(len(tasks))]

    def _fit(self, sets: Sequence[Sequence[Task]]) -> list[Fit]:
        """Fit as many tasks on each of several sets of features."""
        axes = self._axes([tasks[0] for tasks in sets])
        device = axes.train.device
        labels = torch.stack([torch.stack([task.labels for task in tasks], dim=1) for tasks in sets]).to(device)
        classes = len(sets[0][0].train.names)
        start = axes.train.new_zeros(len(sets), axes.train.shape[2], len(sets[0]), classes)
        penalties = torch.full(start.shape[::2], max(self.penalties), dtype=start.dtype, device=device)
        if len(self.penalties) > 1:
            held = torch.stack([torch.stack([_held_out(task) for task in tasks], dim=1) for tasks in sets]).to(device)
            penalties, start = self._choose(axes.train.float(), labels, held.float(), start.float())
        even = torch.full(labels.shape, 1 / labels.shape[1], dtype=start.dtype, device=device)
        solution = solve(
            axes.train,
            labels,
            even,
            penalties=penalties,
            start=start,
            tolerance=TOLERANCE,
            max_iterations=self.max_iterations,
        )
        predicted = solution.logits(axes.test).argmax(dim=3).permute(0, 2, 1).flatten(0, 1).cpu()
        converged = (solution.gradients <= TOLERANCE).flatten().tolist()
        width = sets[0][0].train.width
        return [
            Fit(predicted=row, parameters=(width + 1) * classes, converged=done)
            for row, done in zip(predicted, converged, strict=True)
        ]

    def _axes(self, tasks: Sequence[Task]) -> Axes:
        """Return the features of several sets on their principal axes, in float64."""
        device = self.torch_device()
        train, test = [], []
        for task in tasks:
            pair = [each.to(device, torch.float64) for each in (task.train.features, task.test)]
            if self.standardise:
                mean, deviation = moments(pair[0])
                pair = [(each - mean) / deviation for each in pair]
            train.append(pair[0])
            test.append(pair[1])
        return on_axes(torch.stack(train), torch.stack(test))

    def _choose(self, features: Tensor, labels: Tensor, held: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return the penalty of each regression, (sets, K), and the weights that it led to.

        Args:
            features: (sets, samples, axes + 1).
            labels: (sets, samples, K).
            held: (sets, samples, K), 1 where a sample is held out.
            start: (sets, axes + 1, K, classes).
        """
        kept = (1 - held) / (1 - held).sum(dim=1, keepdim=True)
        lowest = torch.full(start.shape[::2], torch.inf, device=start.device)
        best, weights = torch.zeros_like(lowest, dtype=torch.float64), start
        path = start
        for penalty in sorted(self.penalties, reverse=True):
            solution = solve(
                features,
                labels,
                kept,
                penalties=torch.full_like(lowest, penalty),
                start=path,
                tolerance=_ROUGH,
                max_iterations=self.max_iterations,
            )
            losses = _mean_loss(solution, features, labels, held)
            path, better = solution.weights, losses < lowest
            lowest, best = torch.where(better, losses, lowest), torch.where(better, penalty, best)
            weights = torch.where(better[:, None, :, None], path, weights)
        return best, weights.double()


def _held_out(task: Task) -> Tensor:
    """Return which samples choose the penalty, (samples,).

    Raises:
        DataError: There is none.
    """
    _, rows = hold_out(task.labels, _HELD_OUT, torch_generator(task.seed, "slice"))
    if not len(rows):
        raise DataError(
            f"Features {task.name!r}: each class has a single training sample, so that none can be held out to choose "
            "the penalty. Give more samples, or the probe a single penalty."
        )
    return torch.zeros(len(task.labels), dtype=torch.bool).index_fill_(0, rows, True)


def _mean_loss(solution: Solution, features: Tensor, labels: Tensor, held: Tensor) -> Tensor:
    logits = solution.logits(features)
    losses = logits.logsumexp(dim=3) - logits.gather(3, labels[..., None])[..., 0]
    return (losses * held).sum(dim=1) / held.sum(dim=1)
