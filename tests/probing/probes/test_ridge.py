from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch
from sklearn.linear_model import Ridge  # type: ignore[import-untyped]

from lightning_mllm.probing.probes.ridge import PENALTIES, RidgeSums, choose_ridge, solve_ridge

DRAW = torch.Generator().manual_seed(0)
X = 5 + torch.randn(80, 6, generator=DRAW).double() * torch.tensor([1, 10, 0.1, 3, 1, 2.0])
Y = X @ torch.randn(6, 3, generator=DRAW).double() + torch.randn(80, 3, generator=DRAW).double()


def test_it_is_the_ridge_regression_of_standardised_features() -> None:
    scaled = (X - X.mean(0)) / X.std(0, correction=0)
    expected = Ridge(alpha=0.3 * len(X)).fit(scaled.numpy(), Y.numpy()).predict(scaled.numpy())

    found = solve_ridge(RidgeSums.of(X, Y), 0.3).predict(X)

    assert torch.allclose(found, torch.from_numpy(expected), atol=1e-9)


def test_sums_of_parts_give_what_the_whole_gives_and_its_error() -> None:
    parts = [RidgeSums.of(X[rows], Y[rows]) for rows in (slice(0, 30), slice(30, 80))]

    ridge = solve_ridge(reduce(add, parts), 1e-2)

    whole = solve_ridge(RidgeSums.of(X, Y), 1e-2)
    assert torch.allclose(ridge.weight, whole.weight, atol=1e-10)
    errors = (Y[30:] - ridge.predict(X[30:])).square().sum()
    assert ridge.error(parts[1]) == pytest.approx(float(errors), rel=1e-9)


def test_a_constant_feature_has_no_say() -> None:
    with_constant = torch.cat([X, torch.full((80, 1), 7.0)], dim=1)

    found = solve_ridge(RidgeSums.of(with_constant, Y), 1e-3)

    assert torch.allclose(
        found.predict(with_constant), solve_ridge(RidgeSums.of(X, Y), 1e-3).predict(X)
    )
    assert found.weight[-1].eq(0).all()


def test_noise_gets_a_strong_penalty_and_a_law_a_weak_one() -> None:
    draw = torch.Generator().manual_seed(5)
    features = torch.randn(100, 30, generator=draw).double()
    law = features @ torch.randn(30, 1, generator=draw).double()
    noise = torch.randn(100, 1, generator=draw).double()
    penalties = []
    for outputs in (law, noise):
        folds = [RidgeSums.of(features[k::5], outputs[k::5]) for k in range(5)]
        penalties.append(choose_ridge(folds).penalty)

    assert penalties[0] == min(PENALTIES)
    assert penalties[1] >= 10
