"""What a probe is: a classifier of features, trained apart from the model that they come from.

The released script of Verma et al. (ACL 2024) evaluates on the test split in every epoch, and its
placeholders invite training on it. Here a probe is trained before it sees a test feature, and
choices are made on a slice of train.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation.classification.metrics import ClassificationResult
from lightning_mllm.probing.features.feature_set import FeatureSet
from lightning_mllm.probing.probes.checks import check_probe_splits, list_checked_names
from lightning_mllm.probing.probes.held_out import hold_out
from lightning_mllm.probing.probes.scores import ProbeScore, score_probe
from lightning_mllm.store.seeds import torch_generator

ItemT = TypeVar("ItemT")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeTask:
    """One classifier to train, and what it classifies afterwards.

    Attributes:
        name: Name of the feature set.
        train: Features to train on, with their true targets.
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
class ProbeFit:
    """The outcome of a task.

    Attributes:
        predicted: (test samples,) class indices, on the CPU.
        parameters: Number of trained weights.
        epochs: Number of epochs of training; 0 where nothing is trained in epochs.
        best_epoch: Epoch whose weights were kept; 0 where nothing is trained in epochs.
        converged: Whether training went on until nothing more was gained, by the probe's own rule;
            None if it has no such rule.
    """

    predicted: Tensor
    parameters: int
    epochs: int = 0
    best_epoch: int = 0
    converged: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Probe(ABC):
    """Reads classes from features; a new kind of probe implements `fit_predict` and nothing else.

    Attributes:
        control: Whether the probe is also trained on shuffled labels, drawn again for each seed,
            and scored on the true labels of the test split. It is at chance there by construction.
            So accuracy minus this accuracy, the selectivity (Hewitt and Liang, 2019), is what the
            probe owes to the features, not to its size or to how frequent the classes are.
        label: Name under which scores are filed, in place of the probe's own; needed where two
            probes of a run have the same name.

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
            raise ConfigError(
                f"A probe's label has no slash; found {self.label!r}. Give e.g. mlp-wide."
            )

    @property
    def name(self) -> str:
        """Name under which scores are filed: the label, or else the kind."""
        return self.label or self.kind

    @abstractmethod
    def fit_predict(self, tasks: Sequence[ProbeTask]) -> list[ProbeFit]:
        """Train one classifier per task and classify its test features.

        Gradients are on, autocast and inference mode off. A fit depends on its own task only.
        """

    def fit_score(
        self,
        train: Mapping[str, FeatureSet],
        test: Mapping[str, FeatureSet],
        seeds: Sequence[int],
        halves: int = 0,
    ) -> dict[str, ProbeScore]:
        """Train on each set of train, once per seed, and score on the set of the same name of test.

        Sets may be points of a model, epochs, policies or domains; widths and sizes may differ
        between names. The scores of a name do not depend on which others are trained along with it,
        and the global random state is neither read nor changed. With one seed, sets with the same
        labels and width start from the same weights, hold out the same samples and see the others
        in the same order: their scores are paired.

        A class that only the test split has is scored, as always wrong, and logged. So macro-F1
        averages over the same classes for every probe and model. A class that only train has is not
        scored.

        Args:
            train: Name -> features to train on.
            test: Name -> features to score on.
            seeds: Seeds of the probes, all different.
            halves: How many further probes are trained on a half of the training samples each,
                drawn without replacement within classes. The variance of a number over the halves
                is about that over training splits of the full size (the jackknife that deletes a
                half; Shao and Wu, 1989). Half k is the same for all sets with the same labels.

        Raises:
            DataError: Train and test do not belong together, or there are not two classes.
            ConfigError: There are no seeds, or one of them is given twice.
        """
        check_probe_splits(train, test, seeds)
        tasks: list[ProbeTask] = []
        for shuffled in (False, True) if self.control else (False,):
            for name in train:
                tasks += [_task(name, train[name], test[name], seed, shuffled) for seed in seeds]
        n_full = len(tasks)
        for name in train:
            tasks += [_task_of_half(name, train[name], test[name], half) for half in range(halves)]
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            fits = self.fit_predict(tasks)
        self._warn(tasks, fits)
        per_set = list(
            cut_probe_tasks(fits[:n_full], len(seeds))
        )  # of the true labels, then of the controls
        scores: dict[str, ProbeScore] = {}
        for number, name in enumerate(train):
            control = per_set[len(train) + number] if self.control else []
            of_halves = fits[n_full + number * halves :][:halves]
            scores[name] = self._score(
                train[name], test[name], seeds, per_set[number], control, of_halves
            )
        return scores

    def _warn(self, tasks: Sequence[ProbeTask], fits: Sequence[ProbeFit]) -> None:
        """Log which fits have not converged."""
        stopped: Counter[str] = Counter()
        for task, fit in zip(tasks, fits, strict=True):
            if fit.converged is False:
                stopped[task.name] += 1
        if stopped:
            logger.warning(
                "The probe %r has not converged in %d of %d fits (features %s): there may be more "
                "in the features than it reads. %s",
                self.name,
                stopped.total(),
                len(fits),
                list_checked_names([*stopped]),
                self.remedy,
            )

    def _score(  # noqa: PLR0917 - what, on what, and three kinds of fits
        self,
        train: FeatureSet,
        test: FeatureSet,
        seeds: Sequence[int],
        fits: Sequence[ProbeFit],
        controls: Sequence[ProbeFit],
        halves: Sequence[ProbeFit],
    ) -> ProbeScore:
        return ProbeScore(
            probe=self.name,
            seeds=tuple(seeds),
            results=_score_all(fits, test),
            controls=_score_all(controls, test),
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


@dataclass(frozen=True, kw_only=True)
class BatchedProbe(Probe):
    """A probe that fits several seeds and feature sets at once.

    Attributes:
        standardise: Whether features are shifted and scaled by mean and standard deviation of the
            train split, number by number.
        device: Where to fit; "auto" is the GPU if there is one.
        models_at_once: The most classifiers that are fitted at once. It bounds memory and changes
            no result except by rounding. One network of the paper takes 55 MB, and five times as
            much in training.

    Raises:
        ConfigError: `models_at_once` is below 1.
    """

    standardise: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    models_at_once: int = 20

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.models_at_once < 1:
            raise ConfigError(f"models_at_once is {self.models_at_once}; it must be at least 1.")

    @property
    def name(self) -> str:
        """The label, or else the kind and what is not default, e.g. `mlp-paper-raw`."""
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
        """Return a word for each option that differs from the default of the class."""
        if self.standardise == type(self).standardise:
            return []
        return ["standardised" if self.standardise else "raw"]


def cut_probe_tasks(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    """Cut a sequence into parts of `size` items; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _score_all(fits: Sequence[ProbeFit], test: FeatureSet) -> tuple[ClassificationResult, ...]:
    return tuple(score_probe(test.names, fit.predicted, test.targets) for fit in fits)


def _task(name: str, train: FeatureSet, test: FeatureSet, seed: int, control: bool) -> ProbeTask:
    labels = train.targets
    if control:
        labels = labels[torch.randperm(len(labels), generator=torch_generator(seed, "control"))]
    return ProbeTask(name=name, train=train, labels=labels, test=test.features, seed=seed)


def _task_of_half(name: str, train: FeatureSet, test: FeatureSet, half: int) -> ProbeTask:
    rows, _ = hold_out(train.targets, 0.5, torch_generator(half, "half"))
    part = replace(
        train,
        features=train.features[rows],
        targets=train.targets[rows],
        sample_ids=tuple(train.sample_ids[row] for row in rows.tolist()),
    )
    return ProbeTask(name=name, train=part, labels=part.targets, test=test.features, seed=half)
