"""Laws of the regressions that the linear probe is made of."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

from lightning_mllm.probing.probes.logistic import (
    LogisticAxes,
    LogisticSolution,
    logistic_axes,
    solve_logistic,
)

FEW_SAMPLES, MANY_SAMPLES = (30, 80), (90, 12)  # of so many features
shapes = pytest.mark.parametrize(
    "shape", [FEW_SAMPLES, MANY_SAMPLES], ids=["few samples", "many samples"]
)
CLASSES, SETS, MODELS = 3, 2, 2


def _data(shape: tuple[int, int], sets: int = SETS) -> tuple[Tensor, Tensor, Tensor]:
    """Return train and test features and labels; features differ in scale and are correlated."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64)
    mixing *= torch.logspace(-1, 1, shape[1], dtype=torch.float64)
    train, test = (
        torch.randn(sets, n, shape[1], generator=generator, dtype=torch.float64)
        for n in (shape[0], 20)
    )
    labels = torch.randint(0, CLASSES, (sets, shape[0], MODELS), generator=generator)
    return train @ mixing + 5, test @ mixing + 5, labels


def _solve(
    axes: LogisticAxes,
    labels: Tensor,
    penalty: float,
    start: Tensor | None = None,
    tolerance: float = 1e-9,
) -> LogisticSolution:
    weights = torch.full(labels.shape, 1 / labels.shape[1], dtype=torch.float64)
    penalties = torch.full(labels.shape[::2], penalty, dtype=torch.float64)
    if start is None:
        start = torch.zeros(
            labels.shape[0], axes.train.shape[2], labels.shape[2], CLASSES, dtype=torch.float64
        )
    return solve_logistic(
        axes.train,
        labels,
        weights,
        penalties=penalties,
        start=start,
        tolerance=tolerance,
        max_iterations=3000,
    )


@shapes
def test_lengths_and_angles_are_the_same_on_the_principal_axes(shape: tuple[int, int]) -> None:
    train, test, _ = _data(shape, sets=1)
    axes = logistic_axes(train, test)

    centred, others = train - train.mean(1, keepdim=True), test - train.mean(1, keepdim=True)
    scale = centred.square().sum(2).mean()
    ours = axes.train[..., :-1]
    torch.testing.assert_close(ours @ ours.mT * scale, centred @ centred.mT)
    torch.testing.assert_close(axes.test[..., :-1] @ ours.mT * scale, others @ centred.mT)
    assert ours.square().sum(2).mean() == pytest.approx(1)


@shapes
@pytest.mark.parametrize("penalty", [1e-1, 1e-3, 1e-5])
def test_solutions_are_scikit_learns_at_the_same_penalty(
    shape: tuple[int, int], penalty: float
) -> None:
    train, test, labels = _data(shape)
    axes = logistic_axes(train, test)
    found = _solve(axes, labels, penalty).logits(axes.test).softmax(3)

    for index in range(SETS):
        scale = (train[index] - train[index].mean(0)).square().sum(1).mean().sqrt()
        for model in range(MODELS):
            theirs = LogisticRegression(C=1 / (penalty * shape[0]), tol=1e-9, max_iter=50_000)
            theirs.fit((train[index] / scale).numpy(), labels[index, :, model].numpy())
            expected = theirs.predict_proba((test[index] / scale).numpy())
            np.testing.assert_allclose(found[index, :, model].numpy(), expected, atol=3e-5)


@shapes
def test_the_gradient_vanishes_at_the_solution_as_autograd_sees_it(shape: tuple[int, int]) -> None:
    train, test, labels = _data(shape)
    axes = logistic_axes(train, test)
    solution = _solve(axes, labels, 1e-3, tolerance=1e-5)

    weights = solution.weights.clone().requires_grad_()
    logits = LogisticSolution(weights, solution.gradients, solution.iterations).logits(axes.train)
    losses = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none").view(
        labels.shape
    )
    (losses.mean(1).sum() + 1e-3 / 2 * weights[:, :-1].square().sum()).backward()

    assert weights.grad is not None
    lengths = weights.grad.square().sum((1, 3)).sqrt()
    assert (lengths <= 1.001e-5).all()
    torch.testing.assert_close(lengths, solution.gradients, rtol=1e-3, atol=1e-12)


@shapes
def test_the_start_decides_nothing(shape: tuple[int, int]) -> None:
    train, test, labels = _data(shape)
    axes = logistic_axes(train, test)
    size = (SETS, axes.train.shape[2], MODELS, CLASSES)
    start = 10 * torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    one, other = (
        _solve(axes, labels, 1e-4, start=each).logits(axes.test).softmax(3)
        for each in (None, start)
    )

    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_each_regression_is_solved_as_if_it_were_alone() -> None:
    train, test, labels = _data(MANY_SAMPLES)
    axes = logistic_axes(train, test)
    together = _solve(axes, labels, 1e-4)

    for index in range(SETS):
        for model in range(MODELS):
            one = LogisticAxes(axes.train[index : index + 1], axes.test[index : index + 1])
            alone = _solve(one, labels[index : index + 1, :, model : model + 1], 1e-4)
            assert int(alone.iterations) == int(together.iterations[index, model])
            torch.testing.assert_close(together.weights[index, :, model], alone.weights[0, :, 0])


def test_separable_classes_have_a_solution_however_weak_the_penalty() -> None:
    train = torch.tensor([[[-1.0], [-2.0], [1.0], [2.0]]], dtype=torch.float64)
    axes, labels = logistic_axes(train, train), torch.tensor([[[0], [0], [1], [1]]])

    for penalty in (1e-2, 1e-6, 1e-9):
        solution = _solve(axes, labels, penalty, tolerance=1e-10)
        assert solution.weights.isfinite().all()
        assert float(solution.gradients) <= 1e-10
        assert torch.equal(solution.logits(axes.test).argmax(3), labels)


def test_features_that_are_all_the_same_give_the_frequencies_of_the_classes() -> None:
    same = torch.full((1, 10, 4), 7.0, dtype=torch.float64)
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)[None, :, None]

    axes = logistic_axes(same, same)
    found = _solve(axes, labels, 1e-3).logits(axes.test).softmax(3)

    torch.testing.assert_close(
        found[0, 0, 0], torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), rtol=0, atol=1e-7
    )
