from __future__ import annotations

import pytest
import torch

from lightning_mllm.errors import DataError
from lightning_mllm.probing import linear_cka, mean_cosine, relative_change

X = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
Y = torch.randn(40, 7, generator=torch.Generator().manual_seed(1))


def test_cka_of_a_set_with_itself_rotated_scaled_and_shifted_is_one() -> None:
    rotation, _ = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(2)))

    assert linear_cka(X, 3 * X @ rotation + 5) == pytest.approx(1, abs=1e-6)


def test_cka_through_samples_and_through_widths_agree() -> None:
    few = slice(None, 9)  # fewer samples than widths
    x, y = (each.double() - each.double().mean(dim=0) for each in (X[few], Y[few]))
    expected = (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())

    assert linear_cka(X[few], Y[few]) == pytest.approx(float(expected), abs=1e-12)
    assert linear_cka(X, Y) == pytest.approx(linear_cka(Y, X), abs=1e-12)
    assert linear_cka(X, Y) < 0.5


def test_cka_refuses_what_it_can_not_compare() -> None:
    with pytest.raises(DataError, match="found 40 and 39"):
        linear_cka(X, Y[1:])
    with pytest.raises(DataError, match="the same for all samples"):
        linear_cka(X, torch.ones(40, 3))


def test_cosine_ignores_length_and_sees_direction() -> None:
    assert mean_cosine(X, 2 * X) == pytest.approx(1)
    assert mean_cosine(X, -X) == pytest.approx(-1)


def test_the_relative_change_of_weights_is_over_all_of_them_together() -> None:
    before = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}
    after = {"a": torch.tensor([3.0]), "b": torch.tensor([[6.5]])}

    assert relative_change(before, before) == 0
    assert relative_change(before, after) == pytest.approx(0.5)
