"""What a probe is: a classifier of features, trained anew, that is scored on a test split.

The released script of Verma et al. (ACL 2024) evaluates on the test split in every epoch, and its placeholders invite
training on it. Here a probe is trained before it sees a test feature, and choices are made on a slice of train.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.probing.features.feature_set import FeatureSet
from lightning_mllm.probing.probes.scores import ProbeScore, score
from lightning_mllm.probing.probes.seeds import hold_out
from lightning_mllm.store.seeds import torch_generator

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One classifier to train and what it predicts afterwards.

    Attributes:
        name: Of the feature set.
        train: What to train on, but for the labels.
        labels: (train samples,) class indices to learn: the targets, or the targets shuffled.
        test: (test samples, width), features to classify.
        seed: Decides everything that is random.
    """

    name: str
    train: FeatureSet
    labels: Tensor
    test: Tensor
    seed: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """The outcome of a task.

    Attributes:
        predicted: (test samples,) class indices, on the CPU.
        parameters: Number of trained weights.
        epochs: Trained.
        best_epoch: Whose weights were kept; 0 like `epochs` where nothing is trained in epochs.
        converged: Whether training went on until there was nothing more to gain, by the probe's own rule; None where it
            has none.
    """

    predicted: Tensor
    parameters: int
    epochs: int = 0
    best_epoch: int = 0
    converged: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Probe(ABC):
    """Reads classes from features; a new kind of probe writes `fit_predict` and nothing else.

    Attributes:
        control: Also train on shuffled labels: the labels of the training samples (and so of the slice held out from
            them) are permuted, anew per seed, and the probe is scored on the true labels of the test split. It is at
            chance there by construction, so accuracy minus its accuracy, the selectivity, is what the probe owes to
            the features and not to its own size or to the frequencies of the classes.
        label: What its scores are filed under in place of `name`; needed where two of a run have the same name.

    Raises:
        ConfigError: The label has a slash, which separates point and probe in files.
    """

    kind: ClassVar[str]
    remedy: ClassVar[str] = ""  # what to do where fits don't converge
    control: bool = False
    label: str = ""

    def __post_init__(self) -> None:
        """Check the label."""
        if "/" in self.label:
            raise ConfigError(f"A probe's label has no slash; found {self.label!r}. Give e.g. mlp-wide.")

    @property
    def name(self) -> str:
        """What its scores are filed under: the label, or else the kind with what differs from its defaults."""
        return self.label or self.kind

    @abstractmethod
    def fit_predict(self, tasks: Sequence[Task]) -> list[Fit]:
        """Train one classifier per task and classify its test features.

        Gradients are on, autocast and inference mode off. A fit depends on its own task only.
        """

    def fit_score(
        self, train: Mapping[str, FeatureSet], test: Mapping[str, FeatureSet], seeds: Sequence[int], halves: int = 0
    ) -> dict[str, ProbeScore]:
        """Train on each set of train, once per seed, and score on the set of the same name of test.

        How much a score owes to which training samples there are is told by further probes, each of which is trained on
        a half of them, drawn without replacement within classes: the variance of a number over the halves is about that
        over training splits of the full size (the jackknife that deletes a half; Shao and Wu, 1989).

        Sets may be points of a model, epochs, policies or domains; widths and sizes may differ between names. The
        scores of a name do not depend on which others are trained along with it, and the global random state is neither
        read nor changed. Of one seed, sets with the same labels and width start from the same weights, hold out the
        same samples and see the others in the same order: their scores are paired. A class that only the test split has
        is scored, as always wrong, and logged: so the classes that macro-F1 averages over are the same for every probe
        and model. A class that only train has is not scored.

        Args:
            train: By name.
            test: Likewise.
            seeds: Of the probes.
            halves: How many halves of the training samples; half k is the same for all sets with the same labels.

        Raises:
            DataError: Train and test do not belong together, or there is nothing to tell apart.
            ConfigError: There are no seeds, or one comes twice.
        """
        _check(train, test, seeds)
        shuffled = (False, True) if self.control else (False,)
        tasks = [
            _task(name, train[name], test[name], seed, control)
            for control in shuffled
            for name in train
            for seed in seeds
        ]
        of_halves = [_task_of_half(name, train[name], test[name], half) for name in train for half in range(halves)]
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            fits = self.fit_predict([*tasks, *of_halves])
        self._warn([*tasks, *of_halves], fits)
        per_set = [fits[start : start + len(seeds)] for start in range(0, len(tasks), len(seeds))]
        controls = per_set[len(train) :] or [[] for _ in train]
        resampled = [fits[len(tasks) + k * halves :][:halves] for k in range(len(train))]
        return {
            name: self._score(train[name], test[name], seeds, *of_set)
            for name, *of_set in zip(train, per_set, controls, resampled, strict=False)
        }

    def _warn(self, tasks: Sequence[Task], fits: Sequence[Fit]) -> None:
        """Say which fits have not converged."""
        stopped = Counter(task.name for task, fit in zip(tasks, fits, strict=True) if fit.converged is False)
        if stopped:
            _log.warning(
                "The probe %r has not converged in %d of %d fits (features %s): there may be more in the features than "
                "it reads. %s",
                self.name,
                stopped.total(),
                len(fits),
                _some([*stopped]),
                self.remedy,
            )

    def _score(  # noqa: PLR0917 - what, on what, and three kinds of fits
        self,
        train: FeatureSet,
        test: FeatureSet,
        seeds: Sequence[int],
        fits: Sequence[Fit],
        controls: Sequence[Fit],
        halves: Sequence[Fit],
    ) -> ProbeScore:
        return ProbeScore(
            probe=self.name,
            seeds=tuple(seeds),
            results=tuple(score(test.names, fit.predicted, test.targets) for fit in fits),
            controls=tuple(score(test.names, fit.predicted, test.targets) for fit in controls),
            predictions=torch.stack([fit.predicted for fit in fits]),
            halves=tuple(fit.predicted for fit in halves),
            targets=test.targets,
            sample_ids=test.sample_ids,
            width=train.width,
            n_train=len(train),
            epochs=tuple(fit.epochs for fit in fits),
            best_epochs=tuple(fit.best_epoch for fit in fits),
            converged=tuple(fit.converged for fit in fits),
            parameters=fits[0].parameters,
        )


def _task(name: str, train: FeatureSet, test: FeatureSet, seed: int, control: bool) -> Task:
    labels = train.targets
    if control:
        labels = labels[torch.randperm(len(labels), generator=torch_generator(seed, "control"))]
    return Task(name=name, train=train, labels=labels, test=test.features, seed=seed)


def _task_of_half(name: str, train: FeatureSet, test: FeatureSet, half: int) -> Task:
    rows, _ = hold_out(train.targets, 0.5, torch_generator(half, "half"))
    part = replace(
        train,
        features=train.features[rows],
        targets=train.targets[rows],
        sample_ids=tuple(train.sample_ids[row] for row in rows.tolist()),
    )
    return Task(name=name, train=part, labels=part.targets, test=test.features, seed=half)


def _check(train: Mapping[str, FeatureSet], test: Mapping[str, FeatureSet], seeds: Sequence[int]) -> None:
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"A probe is trained once per seed; found seeds {list(seeds)}. Give one or more, all different."
        )
    if not train or set(train) != set(test):
        raise DataError(
            f"A probe is tested on the features that it is trained for; found train features {sorted(train)} and test "
            f"features {sorted(test)}. Extract the same ones from both splits."
        )
    for name in train:
        _check_pair(name, train[name], test[name])


def _check_pair(name: str, train: FeatureSet, test: FeatureSet) -> None:
    if (train.names, train.width) != (test.names, test.width):
        raise DataError(
            f"Features {name!r}: train has {train.width} numbers per sample and classes {_some(train.names)}, test has "
            f"{test.width} and {_some(test.names)}. Extract both with one model and one class list."
        )
    if train.sample_ids == test.sample_ids and torch.equal(train.features, test.features):
        raise DataError(
            f"Features {name!r}: train and test are the same {len(test)} samples, so that any score would be one of "
            "memory. Give the test split's features as test."
        )
    known = set(train.targets.tolist())
    if len(known) < 2:
        raise DataError(
            f"Features {name!r}: all {len(train)} training samples are of the class {train.names[known.pop()]!r}; a "
            "probe needs two classes or more. Check the labels of the train split."
        )
    unknown = [train.names[target] for target in sorted(set(test.targets.tolist()) - known)]
    if unknown:
        _log.warning(
            "Features %r: the test split has classes that train has no sample of, which a probe cannot learn: %s. "
            "Their samples are scored as wrong.",
            name,
            _some(unknown),
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(repr(name) for name in names[:5]) + more
