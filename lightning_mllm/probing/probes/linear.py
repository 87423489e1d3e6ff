"""The linear probe: logistic regression, solved to its optimum."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.probing.probes.held_out import hold_out
from lightning_mllm.probing.probes.logistic import (
    TOLERANCE,
    LogisticAxes,
    LogisticSolution,
    logistic_axes,
    solve_logistic,
)
from lightning_mllm.probing.probes.probe import BatchedProbe, ProbeFit, ProbeTask, cut_probe_tasks
from lightning_mllm.probing.probes.stacked_data import moments_of_stacked_data
from lightning_mllm.store.seeds import torch_generator

_HELD_OUT = 0.1  # share of each class on which the penalty is chosen
_ROUGH_TOLERANCE = 1e-4  # length of the gradient up to which penalties are compared, in float32
_PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True, kw_only=True)
class LinearProbe(BatchedProbe):
    """Logistic regression with an L2 penalty: what features show without a hidden layer.

    The problem is convex: a penalty and the training samples decide the solution, whatever the
    seed. The seed decides which tenth of each class is held out to choose the penalty: the one with
    the lowest mean loss on these samples. The probe is the regression with this penalty on all
    training samples. It has converged when the length of its gradient is 1e-5 or less.

    Attributes:
        penalties: Penalties to choose from, relative to the mean squared length of the features
            around their mean, so that their scale does not matter. With a single penalty nothing is
            chosen, and the seed does not matter.
        max_iterations: Number of iterations of the solver after which a fit that has not converged
            stops, with a warning.

    Raises:
        ConfigError: The penalties are not different and above 0, or `max_iterations` is below 1.
    """

    kind: ClassVar[str] = "linear"
    remedy: ClassVar[str] = "Raise max_iterations, or leave out the weakest penalties."
    standardise: bool = True
    penalties: tuple[float, ...] = _PENALTIES
    max_iterations: int = 2000

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        different = len(set(self.penalties)) == len(self.penalties)
        if not self.penalties or min(self.penalties) <= 0 or not different:
            raise ConfigError(
                f"penalties are {self.penalties}; give one or more, all different and above 0."
            )
        if self.max_iterations < 1:
            raise ConfigError(f"max_iterations is {self.max_iterations}; it must be at least 1.")

    def _differences(self) -> list[str]:
        default = type(self)
        custom = (self.penalties, self.max_iterations) != (
            default.penalties,
            default.max_iterations,
        )
        return [*(["custom"] if custom else []), *super()._differences()]

    def fit_predict(self, tasks: Sequence[ProbeTask]) -> list[ProbeFit]:
        """Fit one regression per task; sets of features of one shape are solved together.

        Raises:
            DataError: There are penalties to choose from, but no sample to hold out.
        """
        fits: dict[int, ProbeFit] = {}
        for parts in self._find_alike(tasks):
            sets_at_once = max(1, self.models_at_once // len(parts[0]))
            for chosen in cut_probe_tasks(parts, sets_at_once):
                positions = [*chain.from_iterable(chosen)]
                found = self._fit([tasks[position] for position in positions], len(chosen))
                fits |= zip(positions, found, strict=True)
        return [fits[position] for position in range(len(tasks))]

    def _find_alike(self, tasks: Sequence[ProbeTask]) -> list[list[Sequence[int]]]:
        """Group the positions of tasks by what can be solved together.

        Returns:
            Groups of parts. A part has tasks on the same train and test features, `models_at_once`
            at most; the parts of a group are equally long and their features of one shape.
        """
        on_features: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for position, task in enumerate(tasks):
            on_features[id(task.train), id(task.test)].append(position)
        alike: defaultdict[object, list[Sequence[int]]] = defaultdict(list)
        for positions in on_features.values():
            for part in cut_probe_tasks(positions, self.models_at_once):
                train, test = tasks[part[0]].train, tasks[part[0]].test
                alike[train.features.shape, test.shape, len(train.names), len(part)].append(part)
        return [*alike.values()]

    def _fit(self, tasks: Sequence[ProbeTask], sets: int) -> list[ProbeFit]:
        """Fit tasks on several sets of features: the first K on the first set, and so on."""
        per_set = len(tasks) // sets  # K
        axes = self._rotate(tasks[::per_set])
        device = axes.train.device
        labels = _stack_per_set([task.labels for task in tasks], sets).to(device)
        classes = len(tasks[0].train.names)
        start = axes.train.new_zeros(sets, axes.train.shape[2], per_set, classes)
        penalties = torch.full(
            start.shape[::2], max(self.penalties), dtype=start.dtype, device=device
        )
        if len(self.penalties) > 1:
            held = _stack_per_set([_held_out(task) for task in tasks], sets).to(device)
            penalties, start = self._choose(axes.train.float(), labels, held.float(), start.float())
        even = torch.full(labels.shape, 1 / labels.shape[1], dtype=start.dtype, device=device)
        solution = solve_logistic(
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
        parameters = (tasks[0].train.width + 1) * classes
        return [
            ProbeFit(predicted=row, parameters=parameters, converged=done)
            for row, done in zip(predicted, converged, strict=True)
        ]

    def _rotate(self, tasks: Sequence[ProbeTask]) -> LogisticAxes:
        """Return the features of one task per set on their principal axes, in float64."""
        device = self.torch_device()
        train, test = [], []
        for task in tasks:
            pair = [each.to(device, torch.float64) for each in (task.train.features, task.test)]
            if self.standardise:
                mean, deviation = moments_of_stacked_data(pair[0])
                pair = [(each - mean) / deviation for each in pair]
            train.append(pair[0])
            test.append(pair[1])
        return logistic_axes(torch.stack(train), torch.stack(test))

    def _choose(
        self, features: Tensor, labels: Tensor, held: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Choose the penalty of each regression by its loss on the samples held out.

        Args:
            features: (sets, samples, axes + 1).
            labels: (sets, samples, K).
            held: (sets, samples, K), 1 where a sample is held out.
            start: (sets, axes + 1, K, classes).

        Returns:
            The penalties, (sets, K), and the weights that they led to, like `start`.
        """
        kept = (1 - held) / (1 - held).sum(dim=1, keepdim=True)
        lowest = torch.full(start.shape[::2], torch.inf, device=start.device)
        best = torch.zeros_like(lowest, dtype=torch.float64)
        weights = path = start
        for penalty in sorted(self.penalties, reverse=True):
            solution = solve_logistic(
                features,
                labels,
                kept,
                penalties=torch.full_like(lowest, penalty),
                start=path,
                tolerance=_ROUGH_TOLERANCE,
                max_iterations=self.max_iterations,
            )
            losses = _mean_loss(solution, features, labels, held)
            path = solution.weights  # the next penalty starts from here
            better = losses < lowest
            lowest = torch.where(better, losses, lowest)
            best = torch.where(better, penalty, best)
            weights = torch.where(better[:, None, :, None], path, weights)
        return best, weights.double()


def _stack_per_set(rows: Sequence[Tensor], sets: int) -> Tensor:
    """Stack a row per task, (samples,), to (sets, samples, K)."""
    per_set: Tensor = torch.stack(list(rows)).unflatten(0, (sets, -1))  # (sets, K, samples)
    return per_set.mT.contiguous()


def _held_out(task: ProbeTask) -> Tensor:
    """Return which samples choose the penalty, (samples,).

    Raises:
        DataError: No sample can be held out.
    """
    _, rows = hold_out(task.labels, _HELD_OUT, torch_generator(task.seed, "slice"))
    if not len(rows):
        raise DataError(
            f"Features {task.name!r}: each class has a single training sample, so that none can be "
            "held out to choose the penalty. Give more samples, or the probe a single penalty."
        )
    return torch.zeros(len(task.labels), dtype=torch.bool).index_fill_(0, rows, True)


def _mean_loss(
    solution: LogisticSolution, features: Tensor, labels: Tensor, held: Tensor
) -> Tensor:
    """Return each regression's mean cross-entropy on the samples held out, (sets, K)."""
    logits = solution.logits(features)
    losses = logits.logsumexp(dim=3) - logits.gather(3, labels[..., None])[..., 0]
    return (losses * held).sum(dim=1) / held.sum(dim=1)
