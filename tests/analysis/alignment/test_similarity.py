"""Similarities of padded batches against loops over tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_mllm.alignment_names import MODES, TOKEN_MODES
from lightning_mllm.analysis.alignment.similarity import (
    gather_for_similarity,
    make_similarity_vectors,
    normalise_for_similarity,
    positions_for_similarity,
    same_position_similarity,
    token_similarity,
)
from lightning_mllm.statistics.masked import masked_max, masked_mean, masked_median, masked_min
from tests.support.alignment_by_hand import cosine, similarity


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_statistics_are_of_what_is_kept(count: int) -> None:
    values = torch.randn(3, 9, dtype=torch.float64)
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[:2, [0, 3, 4, 6, 7, 8][:count]] = True

    for of, by_hand in (
        (masked_mean, np.mean),
        (masked_median, np.median),
        (masked_max, np.max),
        (masked_min, np.min),
    ):
        found = of(values, mask)
        expected = [by_hand(values[row][mask[row]].numpy()) for row in (0, 1)]
        np.testing.assert_allclose(found[:2], expected, rtol=1e-14)
        assert found[2].isnan()


def test_each_mode_is_that_of_the_tokens_by_hand() -> None:
    torch.manual_seed(0)
    states = torch.randn(2, 9, 5) * torch.rand(2, 9, 1) * 4
    kept = torch.zeros(2, 1, 2, 9, dtype=torch.bool)
    kept[0, 0, 0, 1:4], kept[0, 0, 1, 4:8] = True, True
    kept[1, 0, 0, 0:5], kept[1, 0, 1, 7:9] = True, True
    states[0, 0] = torch.nan_to_num(torch.tensor(1e30))  # counts nowhere

    units, lengths = normalise_for_similarity(states)
    at = [positions_for_similarity(kept[:, 0, k]) for k in (0, 1)]
    sides = [gather_for_similarity(units, each) for each in at]
    own = [gather_for_similarity(kept[:, 0, k], each)[:, None] for k, each in enumerate(at)]
    vectors = make_similarity_vectors(units, lengths, kept)
    products = (vectors[..., 0, :] * vectors[..., 1, :]).sum(-1)
    found = torch.cat([products, token_similarity(*sides, *own)], dim=-1)[:, 0]
    either = token_similarity(*sides, *own, either_way=True)[:, 0]

    for row in (0, 1):
        one, other = (states[row][kept[row, 0, k]].double().numpy() for k in (0, 1))
        expected = [similarity(one, other, mode) for mode in MODES]
        np.testing.assert_allclose(found[row], expected, rtol=1e-12)
        both = (similarity(one, other, "max_mean") + similarity(other, one, "max_mean")) / 2
        np.testing.assert_allclose(either[row], [*expected[2:-1], both], rtol=1e-12)
    assert found.shape == (2, len(MODES)) and either.shape == (2, len(TOKEN_MODES))


def test_the_same_tokens_are_alike_in_every_mode_of_one_position() -> None:
    states = torch.randn(4, 3)

    cosines = torch.tensor([[cosine(a, a) for a in states.numpy()]])
    found = same_position_similarity(cosines, torch.ones(1, 4, dtype=torch.bool))

    assert [float(each) for each in found] == pytest.approx([1.0] * 3)


def test_a_state_of_zeros_is_like_nothing() -> None:
    units, lengths = normalise_for_similarity(torch.zeros(1, 2, 3))

    assert not units.any() and not lengths.any()
