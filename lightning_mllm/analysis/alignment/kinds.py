"""Similarities of the tokens of samples of two kinds, over all pairs of one sample of each.

Shukor and Cord (arXiv 2405.16700) compare perceptual tokens of one data set, or modality, with
those of another, and do the same with textual tokens. Here the kinds of samples take the place of
the data sets. As over all samples, a mean over pairs of inner products is the inner product of the
means, so only sums per kind are kept. Pairs of samples that are about the same picture count too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from lightning_mllm.alignment_names import VECTOR_MODES
from lightning_mllm.analysis.alignment.group_sums import (
    GroupCurve,
    GroupSums,
    divide_sums,
    inner_product_of_sums,
)
from lightning_mllm.analysis.alignment.similarity import name_similarity_measures
from lightning_mllm.analysis.core.token_sets import SETS
from lightning_mllm.statistics.question_table import kind_in_question_table


def rows_of_kinds(kinds: Sequence[str | None], depth: int | None) -> dict[str, list[int]]:
    """Return the samples of each kind; those without a kind are in none.

    Args:
        kinds: The kind of each sample, None for a sample without one.
        depth: How many parts of a kind's name, between slashes, tell kinds apart; by default all.
    """
    found: dict[str, list[int]] = {}
    for row, kind in enumerate(kinds):
        if kind is not None:
            found.setdefault(kind_in_question_table(kind, depth), []).append(row)
    return found


def sums_of_kind(kind: str, vectors: Tensor, squares: Tensor) -> dict[str, Tensor]:
    """Return what is summed over the samples of a kind.

    Args:
        kind: Name of the kind.
        vectors: (samples, variants, layers, vector modes, sets, width), from
            `similarity.make_similarity_vectors`.
        squares: (samples, variants, layers, vector modes, sets), the squares of their lengths.
    """
    return {
        f"kind {kind} n": torch.ones(len(vectors)),
        f"kind {kind} vectors": vectors,
        f"kind {kind} squares": squares,
    }


def kinds_in_sums(sums: Sequence[str]) -> list[str]:
    """Return the kinds that sums of these names are of, sorted."""
    found = []
    for name in sums:
        if name.startswith("kind ") and name.endswith(" n"):
            found.append(name.removeprefix("kind ").removesuffix(" n"))
    return sorted(found)


def name_of_kinds(one: str, other: str) -> str:
    """Return how the names of measures of two kinds, or of one, end."""
    return f" of {one}" if one == other else f" of {one} and {other}"


def curves_of_kinds(groups: GroupSums) -> dict[str, GroupCurve]:
    """Return the measures of each kind and of each two kinds.

    Of each set there is the similarity within it; of a single kind also that across the sets.
    Intervals are over the groups that have samples of one of the two; N counts the samples of both.
    """
    found: dict[str, GroupCurve] = {}
    for one, other in combinations_with_replacement(kinds_in_sums(groups.names()), 2):
        numbers = [groups.per_group(f"kind {kind} n") for kind in {one, other}]
        sizes = torch.stack(numbers).sum(0)
        every, *others = groups.choices()
        value = _compare(groups, one, other, every)
        without = []
        for kept, size in zip(others, sizes, strict=True):
            if size:
                without.append(_compare(groups, one, other, kept))
        for measure, own in value.items():
            parts = np.stack([each[measure].numpy() for each in without])
            curve = GroupCurve(own.numpy(), parts, sizes[sizes > 0].numpy())
            found[measure + name_of_kinds(one, other)] = curve
    return found


def _compare(groups: GroupSums, one: str, other: str, kept: Tensor) -> Mapping[str, Tensor]:
    """Return each measure of two kinds in some groups, (variants, layers)."""
    n = float(groups.total(f"kind {one} n", kept))
    first = groups.total(f"kind {one} vectors", kept)
    pairs: dict[str, Tensor] = {}
    if one == other:
        own = groups.total(f"kind {one} squares", kept)  # of each sample with itself
        within = divide_sums(inner_product_of_sums(first, first) - own, n * (n - 1))
        perceptual, textual = divide_sums(first, n).unbind(-2)
        pairs |= {
            "ima_same_layer": inner_product_of_sums(perceptual, textual),
            "ima_input": inner_product_of_sums(perceptual[:, :1], textual),
        }
    else:
        second = groups.total(f"kind {other} vectors", kept)
        of_other = float(groups.total(f"kind {other} n", kept))
        within = divide_sums(inner_product_of_sums(first, second), n * of_other)
    pairs |= {each: within[..., k] for k, each in enumerate(SETS)}
    found: dict[str, Tensor] = {}
    for prefix, values in pairs.items():
        found |= name_similarity_measures(prefix, values, VECTOR_MODES)
    return found
