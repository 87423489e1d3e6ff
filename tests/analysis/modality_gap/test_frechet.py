"""The distance against scipy's root of a matrix, and the laws of a distance."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg  # type: ignore[import-untyped]
import torch
from torch import Tensor

from lightning_mllm.analysis.modality_gap.frechet import (
    TokenMoments,
    frechet_distance,
    matrix_root,
    trace_of_root,
)

WIDTH = 5


def draw(seed: int, number: int = 40, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    return torch.randn(number, WIDTH, generator=generator, dtype=torch.float64) @ mixing + shift


def moments(tokens: Tensor) -> TokenMoments:
    return TokenMoments(len(tokens), tokens.sum(0), tokens.T @ tokens)


def distance(one: Tensor, other: Tensor) -> float:
    return frechet_distance(moments(one), moments(other))


def test_the_root_of_a_diagonal_matrix_has_the_roots_on_its_diagonal() -> None:
    matrix = torch.diag(torch.tensor([4.0, 9.0, 16.0], dtype=torch.float64))

    torch.testing.assert_close(matrix_root(matrix), matrix.sqrt())
    assert float(trace_of_root(matrix, torch.eye(3, dtype=torch.float64))) == pytest.approx(9)


@pytest.mark.parametrize("number", [3, 40])  # with fewer tokens than width, roots of 0 too
def test_the_distance_is_that_of_scipys_root(number: int) -> None:
    one, other = draw(0, number), draw(1, number, 0.5)
    covariances = [np.cov(each.numpy().T) for each in (one, other)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    apart = ((one.mean(0) - other.mean(0)) ** 2).sum().item()
    expected = apart + sum(np.trace(each) for each in covariances) - 2 * np.trace(root)

    assert distance(one, other) == pytest.approx(expected, abs=1e-5)


def test_equal_tokens_have_no_distance() -> None:
    assert distance(draw(0), draw(0)) == pytest.approx(0, abs=1e-9)


def test_neither_order_nor_rotation_nor_a_common_shift_matters() -> None:
    one, other = draw(0), draw(1)
    turn = torch.linalg.qr(draw(2, WIDTH)).Q

    expected = distance(one, other)

    assert distance(other, one) == pytest.approx(expected)
    assert distance(one @ turn, other @ turn) == pytest.approx(expected)
    assert distance(one + 3, other + 3) == pytest.approx(expected)
    assert distance(2 * one, 2 * other) == pytest.approx(4 * expected)


def test_a_shift_of_one_side_adds_its_square() -> None:
    one = draw(0)

    assert distance(one, one + 2) == pytest.approx(4 * WIDTH)
