"""Which weights of a matrix are kept, against lists that are sorted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mllm.analysis.subnetwork.matrices import Matrix
from lightning_mllm.analysis.subnetwork.pruning import Pruning, prune_to_highest
from lightning_mllm.errors import ConfigError
from tests.support.wanda_by_hand import prune_by_hand

MATRIX = Matrix(3, "mlp.up_proj")
COLUMNS = 12


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(5, COLUMNS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def squares() -> Tensor:
    return torch.rand(COLUMNS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.7, 0.99])
def test_wanda_keeps_the_highest_of_each_row(
    weight: Tensor, squares: Tensor, sparsity: float
) -> None:
    kept = Pruning(sparsity=sparsity).kept(MATRIX, weight, squares)

    assert torch.equal(kept, prune_by_hand(weight, squares, sparsity))
    assert (kept.sum(1) == COLUMNS - int(sparsity * COLUMNS)).all()


def test_scores_are_the_papers(weight: Tensor, squares: Tensor) -> None:
    def scores(score: Any) -> Tensor:
        return Pruning(score).scores(MATRIX, weight, squares)

    torch.testing.assert_close(scores("wanda"), weight.abs() * squares.sqrt())
    torch.testing.assert_close(scores("activation"), squares.sqrt().expand(5, -1))
    torch.testing.assert_close(scores("magnitude"), weight.abs())


def test_activations_alone_prune_the_same_inputs_in_all_rows(
    weight: Tensor, squares: Tensor
) -> None:
    kept = Pruning("activation").kept(MATRIX, weight, squares)

    assert (kept == kept[0]).all()
    assert set(kept[0].nonzero().flatten().tolist()) == set(
        squares.topk(COLUMNS // 2).indices.tolist()
    )


def test_the_weights_of_a_matrix_compete_when_asked_to(weight: Tensor) -> None:
    kept = Pruning("magnitude", 0.3, per="matrix").kept(MATRIX, weight)

    assert kept.sum() == weight.numel() - int(0.3 * weight.numel())
    assert weight.abs()[kept].min() > weight.abs()[~kept].max()
    assert len(set(kept.sum(1).tolist())) > 1


@pytest.mark.parametrize(
    ("pattern", "n", "m"), [("2:4", 2, 4), ("1:4", 1, 4), ("4:6", 4, 6), ("3:3", 3, 3)]
)
def test_exactly_n_of_m_are_kept_and_they_are_the_highest(
    weight: Tensor, squares: Tensor, pattern: str, n: int, m: int
) -> None:
    pruning = Pruning(sparsity=pattern)

    groups = pruning.kept(MATRIX, weight, squares).view(5, -1, m)
    scores = (weight.abs() * squares.sqrt()).view(5, -1, m)
    assert (groups.sum(-1) == n).all()
    assert (
        scores.masked_fill(~groups, 9e9).amin(-1) >= scores.masked_fill(groups, -1).amax(-1)
    ).all()
    assert pruning.share == pytest.approx(1 - n / m)


@pytest.mark.parametrize(
    ("sparsity", "columns", "pruned"), [(0.29, 100, 29), (0.7, 10, 7), (0.5, 5, 2), (0.57, 100, 57)]
)
def test_the_count_is_rounded_down_but_not_by_the_binary_fraction(
    sparsity: float, columns: int, pruned: int
) -> None:
    kept = Pruning("magnitude", sparsity).kept(MATRIX, torch.randn(3, columns))

    assert (kept.sum(1) == columns - pruned).all()


@pytest.mark.parametrize("weights", [10**8, 45_088_800, 7 * 10**11])
def test_the_count_is_exact_in_large_matrices_too(weights: int) -> None:
    pruned = {
        share: weights - Pruning("magnitude", share)._count(weights) for share in (0.29, 0.57, 0.07)
    }

    assert pruned == {
        0.29: weights * 29 // 100,
        0.57: weights * 57 // 100,
        0.07: weights * 7 // 100,
    }


def test_of_equal_scores_those_further_left_go_first() -> None:
    assert prune_to_highest(torch.tensor([[1.0, 1.0, 0.0, 1.0]]), 2).tolist() == [
        [False, True, False, True]
    ]


def test_each_row_can_have_a_count_of_its_own() -> None:
    kept = prune_to_highest(torch.tensor([[1.0, 2.0, 3.0]] * 3), torch.tensor([[0], [1], [3]]))

    assert kept.tolist() == [[False] * 3, [False, False, True], [True] * 3]


def test_noise_depends_on_the_seed_and_the_matrix_only(weight: Tensor) -> None:
    def kept(seed: int, matrix: Matrix = MATRIX, dtype: torch.dtype = torch.float64) -> Tensor:
        return Pruning("random", seed=seed).kept(matrix, weight.to(dtype))

    assert torch.equal(kept(0), kept(0, dtype=torch.bfloat16))
    assert not torch.equal(kept(0), kept(1))
    assert not torch.equal(kept(0), kept(0, Matrix(4, MATRIX.name)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "norm"}, r"score is 'norm'; it can be wanda, activation, magnitude, random"),
        ({"per": "column"}, r"per is 'column'"),
        ({"sparsity": 1.0}, r"less than 1, or like '2:4', in quotes; not 1\.0"),
        ({"sparsity": -0.1}, r"at least 0"),
        ({"sparsity": 124}, r"in quotes; not 124"),  # 2:4 without quotes, as YAML reads it
        ({"sparsity": "5:4"}, r"'5:4'; expected a number, or 'n:m' with 0 < n <= m"),
        ({"sparsity": "half"}, r"'half'; expected"),
        ({"sparsity": "2:4", "per": "matrix"}, r"within rows; leave per: matrix out"),
    ],
)
def test_what_can_not_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pruning(**options)


def test_rows_that_can_not_be_cut_into_groups_are_refused(weight: Tensor, squares: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"3\.mlp\.up_proj has rows of 12 weights.*groups of 5"):
        Pruning(sparsity="2:5").kept(MATRIX, weight, squares)
