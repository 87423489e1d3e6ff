"""The probe of numbers: ridge regression, scored by R^2 on samples that it was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_mllm.errors import DataError
from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.probing.probes.ridge import RidgeSums, choose_ridge
from lightning_mllm.statistics.interval import ENDS, VALUE, Interval
from lightning_mllm.statistics.missing import Floats, divide_unless_missing
from lightning_mllm.statistics.picture_bootstrap import Bootstrap, bootstrap_estimate
from lightning_mllm.store.seeds import seed_rank_of

_FOLDS = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbedNumbers:
    """A number of each sample, beside the features that it is read from.

    Attributes:
        features: Point's name -> (samples, width).
        numbers: (samples,), float64.
        sample_ids: Id of each sample.
        pictures: What each sample is about; samples of one picture are not independent.
    """

    features: Mapping[str, Tensor]
    numbers: Tensor
    sample_ids: tuple[str, ...]
    pictures: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class NumberScore:
    """How well a number is read from features.

    Attributes:
        r2: Coefficient of determination on the test samples: 1 minus the squared errors over the
            squared distances from their mean. The mean alone has 0, and a probe that is worse than
            that less.
        interval: 95 % interval of `r2`, from a bootstrap over pictures.
        error: Root of the mean squared error, in the unit of the number.
        deviation: Standard deviation of the number over the test samples.
        penalty: Penalty that was chosen on training samples.
        n_train: Number of training samples.
        n_test: Number of test samples.
        predicted: (test samples,), what the probe says.
    """

    r2: float
    interval: Interval
    error: float
    deviation: float
    penalty: float
    n_train: int
    n_test: int
    predicted: Tensor


def probe_numbers(train: ProbedNumbers, test: ProbedNumbers) -> dict[str, NumberScore]:
    """Fit a ridge regression at each point on train, and score it on test.

    The penalty is chosen on fifths of the training pictures, each held out in turn. Nothing is
    random.

    Raises:
        DataError: There are fewer than ten training pictures.
        NotFiniteError: A feature is NaN or infinite.
    """
    folds = _fold_pictures(train.pictures)
    scores = {}
    for point, features in train.features.items():
        for own, ids in ((features, train.sample_ids), (test.features[point], test.sample_ids)):
            check_finite(own, ids, "The features")
        targets = train.numbers[:, None]
        parts = [folds == fold for fold in range(_FOLDS)]
        ridge = choose_ridge([RidgeSums.of(features[part], targets[part]) for part in parts])
        predicted = ridge.predict(test.features[point])[:, 0]
        scores[point] = _score(test, predicted, ridge.penalty, len(train.numbers))
    return scores


def _score(test: ProbedNumbers, predicted: Tensor, penalty: float, n_train: int) -> NumberScore:
    truth = (test.numbers - test.numbers.mean()).numpy()
    errors = (test.numbers - predicted).square().numpy()

    def determine(weights: Floats) -> Floats:
        total = weights @ truth**2 - (weights @ truth) ** 2 / weights.sum(axis=1)
        return 1 - divide_unless_missing(weights @ errors, total)[:, None]

    draws = Bootstrap().draw(np.array(test.pictures), "R2")
    (found,) = bootstrap_estimate(determine, errors[:, None], draws)
    return NumberScore(
        r2=float(found[VALUE]),
        interval=Interval(*found[ENDS].tolist()),
        error=float(errors.mean()) ** 0.5,
        deviation=float(truth.std()),
        penalty=penalty,
        n_train=n_train,
        n_test=len(truth),
        predicted=predicted,
    )


def _fold_pictures(pictures: Sequence[str]) -> Tensor:
    """Return the fold of each sample, (samples,); samples of one picture are in one fold.

    Raises:
        DataError: There are too few pictures.
    """
    different = sorted(set(pictures), key=lambda name: seed_rank_of(f"fold/{name}", 0))
    if len(different) < 2 * _FOLDS:
        raise DataError(
            f"A number is to be read from the features of {len(different)} training pictures, "
            f"which is too few to choose a penalty. Give {2 * _FOLDS} or more."
        )
    fold = {name: place % _FOLDS for place, name in enumerate(different)}
    return torch.tensor([fold[name] for name in pictures])
