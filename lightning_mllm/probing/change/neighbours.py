"""Which pictures are neighbours before a projection, and how many of them still are behind it.

The k nearest neighbours of a picture are the other pictures whose features have the largest cosine
with its own. Of each picture, the share of its neighbours before the projection that are neighbours
behind it, too, is its k-NN overlap (arXiv 2509.11986). Their released code counts each picture as
its own neighbour, which adds 1/k; here it is left out. Of N pictures in random order the overlap is
k / (N - 1), so that k and N belong to every number.

An overlap below 1 says that the neighbourhood changed. It does not say that anything is lost: the
order of pictures by colour may have given way to an order by object.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_mllm.errors import DataError

_ROWS = 1024  # pictures whose distances to all others are in memory at once


def find_neighbours(features: Tensor, k: int, sample_ids: Sequence[str]) -> Tensor:
    """Return the k nearest other samples of each sample by cosine, (samples, k).

    Of equally near ones those that come first are taken. It is computed in float64.

    Args:
        features: (samples, width).
        k: Number of neighbours.
        sample_ids: Id of each sample, for messages.

    Raises:
        DataError: There are too few samples, or one has no direction.
    """
    samples = len(features)
    if not 0 < k < samples - 1:
        raise DataError(
            f"{k} nearest neighbours among {samples} pictures say nothing: {k} must be at least 1 "
            "and below the number of other pictures. Choose another k, or give more pictures."
        )
    features = features.double()
    lengths = features.norm(dim=1, keepdim=True)
    if not lengths.all():
        name = sample_ids[int((lengths == 0).int().argmax())]
        raise DataError(
            f"All features of {name!r} are 0, so that it has no nearest neighbours. Leave it out, "
            "or read the features at another point."
        )
    unit = features / lengths
    found = []
    for start in range(0, samples, _ROWS):
        near = unit[start : start + _ROWS] @ unit.T
        near.diagonal(start).fill_(-torch.inf)
        found.append(near.sort(dim=1, descending=True, stable=True).indices[:, :k])
    return torch.cat(found)


def neighbour_overlap(before: Tensor, behind: Tensor, k: int, sample_ids: Sequence[str]) -> Tensor:
    """Return the k-NN overlap of each sample, (samples,) float64, from 0 to 1.

    Args:
        before: (samples, width).
        behind: (samples, another width), of the same samples in the same order.
        k: Number of neighbours.
        sample_ids: Id of each sample, for messages.

    Raises:
        DataError: The numbers of samples differ or are too small, or a sample has no direction.
    """
    if len(before) != len(behind):
        raise DataError(
            f"Neighbours are compared among the same pictures; found {len(before)} and "
            f"{len(behind)}. Extract both from the same samples."
        )
    samples = len(before)
    shared = torch.zeros(samples, dtype=torch.float64)
    ours, theirs = (find_neighbours(each, k, sample_ids) for each in (before, behind))
    for start in range(0, samples, _ROWS):
        part = slice(start, start + _ROWS)
        members = torch.zeros(len(ours[part]), samples, dtype=torch.bool)
        members.scatter_(1, ours[part], True)
        shared[part] = members.gather(1, theirs[part]).double().mean(dim=1)
    return shared


def overlap_by_chance(k: int, samples: int) -> float:
    """Return the k-NN overlap to expect where the order of the samples says nothing."""
    return k / (samples - 1)
