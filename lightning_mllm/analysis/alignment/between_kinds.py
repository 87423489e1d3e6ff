"""Similarities of the tokens of samples of two kinds, over all pairs of one sample of each.

Shukor and Cord (arXiv 2405.16700) compare perceptual tokens of one data set, or modality, with those of another, and
textual tokens likewise; here the kinds of samples are the data sets. As over all samples, a mean over pairs of inner
products is the inner product of the means, so that sums per kind are all that is kept. Where samples of two kinds are
about one picture, such pairs count as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from lightning_mllm.analysis.alignment.group_sums import Curve, Groups, inner, over
from lightning_mllm.analysis.alignment.similarity import VECTOR_MODES, names
from lightning_mllm.analysis.core.token_sets import SETS
from lightning_mllm.statistics.question_table import kind_of


def rows_of_kinds(kinds: Sequence[str | None], depth: int | None) -> dict[str, list[int]]:
    """Return the samples of each kind; those without a kind are in none.

    Args:
        kinds: Per sample.
        depth: How many parts of a kind's name, between slashes, tell kinds apart; by default all.
    """
    found: dict[str, list[int]] = {}
    for row, kind in enumerate(kinds):
        if kind is not None:
            found.setdefault(kind_of(kind, depth), []).append(row)
    return found


def sums_of_kind(kind: str, vectors: Tensor, squares: Tensor) -> dict[str, Tensor]:
    """Return what has sums, of samples of a kind.

    Args:
        kind: Its name.
        vectors: (samples, variants, layers, vector modes, sets, width), from `similarity.set_vectors`.
        squares: (samples, variants, layers, vector modes, sets), of their lengths.
    """
    return {
        f"kind {kind} n": torch.ones(len(vectors)),
        f"kind {kind} vectors": vectors,
        f"kind {kind} squares": squares,
    }


def kinds_in(sums: Sequence[str]) -> list[str]:
    """Return the kinds of which there are sums of these names, sorted."""
    of_kinds = (each.removeprefix("kind ") for each in sums if each.startswith("kind "))
    return sorted(each.removesuffix(" n") for each in of_kinds if each.endswith(" n"))


def pair_name(one: str, other: str) -> str:
    """Return how measures of two kinds end, or of one."""
    return f" of {one}" if one == other else f" of {one} and {other}"


def curves_of_kinds(groups: Groups) -> dict[str, Curve]:
    """Return the measures of each kind and of each two: within each set, and of one kind across the sets.

    Intervals are over the groups that have samples of one of the two; N counts the samples of both.
    """
    found: dict[str, Curve] = {}
    for one, other in combinations_with_replacement(kinds_in(groups.names()), 2):
        numbers = [groups.per_group(f"kind {kind} n") for kind in {one, other}]
        sizes = torch.stack(numbers).sum(0)
        every, *others = groups.choices()
        value = _compare(groups, one, other, every)
        without = [_compare(groups, one, other, kept) for kept, size in zip(others, sizes, strict=True) if size]
        for measure, own in value.items():
            parts = np.stack([each[measure].numpy() for each in without])
            found[measure + pair_name(one, other)] = Curve(own.numpy(), parts, sizes[sizes > 0].numpy())
    return found


def _compare(groups: Groups, one: str, other: str, kept: Tensor) -> Mapping[str, Tensor]:
    """Return each measure of two kinds in some groups, (variants, layers)."""
    numbers = [float(groups.total(f"kind {kind} n", kept)) for kind in (one, other)]
    first, second = (groups.total(f"kind {kind} vectors", kept) for kind in (one, other))
    pairs: dict[str, Tensor] = {}
    if one == other:
        n = numbers[0]
        within = over(inner(first, first) - groups.total(f"kind {one} squares", kept), n * (n - 1))
        perceptual, textual = over(first, n).unbind(-2)
        pairs |= {"ima_same_layer": inner(perceptual, textual), "ima_input": inner(perceptual[:, :1], textual)}
    else:
        within = over(inner(first, second), numbers[0] * numbers[1])
    pairs |= {each: within[..., k] for k, each in enumerate(SETS)}
    return {
        name: values
        for prefix, both in pairs.items()
        for name, values in zip(names(prefix, VECTOR_MODES), both.unbind(-1), strict=True)
    }
