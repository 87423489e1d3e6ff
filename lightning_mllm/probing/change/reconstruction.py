"""How much of the patches before a projection a linear map reads back from those behind it.

The share of the patches' variance that a ridge regression from projected patch to original patch
leaves unexplained, on pictures that it was not fitted on. 0: linearly all is there; 1: no more than
the mean patch. What is unexplained is not linearly recoverable, which is less than to be lost: a
network could read more, and the LLM behind the projection is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from lightning_mllm.errors import DataError
from lightning_mllm.probing.probes.ridge import RidgeSums, choose_ridge
from lightning_mllm.store.seeds import seed_rank_of

_FOLDS = 5


@dataclass(frozen=True, eq=False)
class PicturePatches:
    """Some patches of a picture.

    Attributes:
        sample_id: Id of the sample.
        before: (patches, width), what enters the projection.
        behind: (patches, another width), what leaves it.
        shows: (patches,), whether a patch shows a part of an object; None where the sample has no
            boxes.
    """

    sample_id: str
    before: Tensor
    behind: Tensor
    shows: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What a ridge regression leaves unexplained, per picture, while it was held out.

    A share of several pictures is the sum of their `unexplained` over that of their `variance`.

    Attributes:
        sample_ids: Id of each picture.
        unexplained: Region -> (pictures,), sum of the squared errors over its patches; the regions
            are `all`, and `object` and `other` where boxes say which patches show an object.
        variance: Region -> (pictures,), sum of the squared distances of its patches from the mean
            patch of the training pictures.
        patches: Region -> (pictures,), its number of patches; 0 where a picture has none.
    """

    sample_ids: tuple[str, ...]
    unexplained: dict[str, Tensor]
    variance: dict[str, Tensor]
    patches: dict[str, Tensor]

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions that any picture has."""
        return tuple(name for name, counts in self.patches.items() if counts.any())

    def share(self, region: str = "all") -> float:
        """Return the share of the variance that is left unexplained, over all pictures."""
        return float(self.unexplained[region].sum() / self.variance[region].sum())


def reconstruct_patches(pictures: Sequence[PicturePatches]) -> Reconstruction:
    """Fit a ridge regression on four fifths of the pictures, and use it on the last, in turn.

    Which fifth a picture is in depends on its sample's id alone. The penalty is chosen on a part of
    the pictures that the regression is fitted on.

    Args:
        pictures: Patches of different pictures.

    Raises:
        DataError: There are fewer than ten pictures, or all patches are the same.
    """
    if len(pictures) < 2 * _FOLDS:
        raise DataError(
            f"Patches are read back on pictures that are held out; {len(pictures)} pictures are "
            f"too few, give {2 * _FOLDS} or more, or compare neighbourhoods alone (reconstruction: "
            "false)."
        )
    names = sorted(range(len(pictures)), key=lambda row: _rank(pictures[row]))
    fold_of = {row: place % _FOLDS for place, row in enumerate(names)}
    folds = [[row for row in fold_of if fold_of[row] == fold] for fold in range(_FOLDS)]
    sums = [_sum_patches([pictures[row] for row in sorted(rows)]) for rows in folds]
    regions = ("all", "object", "other")
    unexplained, variance, patches = (
        {name: torch.zeros(len(pictures), dtype=torch.float64) for name in regions}
        for _ in range(3)
    )
    for number, rows in enumerate(folds):
        kept = [each for other, each in enumerate(sums) if other != number]
        ridge, total = choose_ridge(kept, chosen_on=1), reduce(add, kept)
        mean = total.y / total.n
        for row in rows:
            own = pictures[row]
            before = own.before.double()
            errors = (before - ridge.predict(own.behind)).square().sum(1)
            distances = (before - mean).square().sum(1)
            for name, mask in _find_regions(own).items():
                unexplained[name][row] = errors[mask].sum()
                variance[name][row] = distances[mask].sum()
                patches[name][row] = mask.sum()
    if not variance["all"].sum():
        raise DataError(
            "All patches before the projection are the same, so that there is nothing to read back "
            "from those behind it. Check that the pictures differ."
        )
    return Reconstruction(
        tuple(each.sample_id for each in pictures), unexplained, variance, patches
    )


def _rank(picture: PicturePatches) -> int:
    return seed_rank_of(f"fold/{picture.sample_id}", 0)


def _sum_patches(pictures: Sequence[PicturePatches]) -> RidgeSums:
    """Return the sums over the patches of pictures; patches behind the projection are features."""
    behind = torch.cat([each.behind for each in pictures])
    return RidgeSums.of(behind, torch.cat([each.before for each in pictures]))


def _find_regions(picture: PicturePatches) -> dict[str, Tensor]:
    """Return region -> which patches of a picture it has."""
    found = {"all": torch.ones(len(picture.before), dtype=torch.bool)}
    if picture.shows is not None:
        found |= {"object": picture.shows, "other": ~picture.shows}
    return found
