from __future__ import annotations

from lightning_mllm.analysis.subnetwork.overlap import (
    describe_overlap_pair,
    match_overlap_folds,
    name_overlap_pair,
    overlap_pairs,
)

A, B = ("a", "perceptual"), ("b", "textual")


def test_comparisons_of_folds_are_independent() -> None:
    folds = {A: [1, 2, 3, 4, 5], B: [6, 7, 8]}

    assert overlap_pairs(folds) == [(A, A), (A, B), (B, B)]
    assert match_overlap_folds(folds, (A, A)) == [(1, 2), (3, 4)]
    assert match_overlap_folds(folds, (A, B)) == [(1, 6), (2, 7), (3, 8)]


def test_a_set_is_compared_with_itself_only_where_it_has_several_folds() -> None:
    assert overlap_pairs({A: [1], B: [2]}) == [(A, B)]


def test_names_say_tasks_and_tokens_and_groups_what_a_pair_has_in_common() -> None:
    assert name_overlap_pair((A, B)) == "a (perceptual) / b (textual)"
    assert (
        describe_overlap_pair((A, B))
        == describe_overlap_pair((B, A))
        == "perceptual / textual, two tasks"
    )
    assert describe_overlap_pair((A, A)) == "perceptual, one task"
