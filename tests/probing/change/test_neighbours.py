from __future__ import annotations

import pytest
import torch

from lightning_mllm.errors import DataError
from lightning_mllm.probing.change import neighbours
from lightning_mllm.probing.change.neighbours import (
    find_neighbours,
    neighbour_overlap,
    overlap_by_chance,
)

N = 60
IDS = [f"s{k}" for k in range(N)]
X = torch.randn(N, 12, generator=torch.Generator().manual_seed(0))


def test_a_set_beside_itself_rotated_and_scaled_keeps_all_neighbours() -> None:
    rotation, _ = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(2)))
    lengths = torch.linspace(0.5, 3, N)[:, None]  # of each sample its own: only directions count

    for k in (1, 10, N - 2):
        assert neighbour_overlap(X, lengths * (X @ rotation), k, IDS).eq(1).all()


def test_neighbours_are_the_others_with_the_largest_cosine() -> None:
    unit = X.double() / X.double().norm(dim=1, keepdim=True)

    found = find_neighbours(X, 5, IDS)

    for row in range(N):
        others = [other for other in range(N) if other != row]
        nearest = sorted(others, key=lambda other: -float(unit[row] @ unit[other]))
        assert found[row].tolist() == nearest[:5]


def test_unrelated_features_overlap_as_chance_says() -> None:
    draw = torch.Generator().manual_seed(3)
    one, other = (torch.randn(400, 16, generator=draw) for _ in range(2))
    ids = [str(k) for k in range(400)]

    overlap = neighbour_overlap(one, other, 20, ids)

    assert float(overlap.mean()) == pytest.approx(overlap_by_chance(20, 400), abs=0.01)
    assert overlap_by_chance(20, 400) == 20 / 399


def test_in_pieces_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    other = X + torch.randn(N, 12, generator=torch.Generator().manual_seed(1))
    whole = neighbour_overlap(X, other, 7, IDS)
    monkeypatch.setattr(neighbours, "_ROWS", 13)

    assert torch.equal(neighbour_overlap(X, other, 7, IDS), whole)
    assert 0 < float(whole.mean()) < 1


def test_what_says_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="59 nearest neighbours among 60 pictures say nothing"):
        neighbour_overlap(X, X, N - 1, IDS)
    with pytest.raises(DataError, match="found 60 and 59"):
        neighbour_overlap(X, X[1:], 5, IDS)
    empty = X.clone()
    empty[7] = 0
    with pytest.raises(DataError, match="All features of 's7' are 0"):
        neighbour_overlap(X, empty, 5, IDS)
