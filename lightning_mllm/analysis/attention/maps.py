"""Maps of attention on a picture: on which grid its patches stand, and how spread out they are.

The spatial entropy is that of Kang et al., "Your Large Vision-Language Model Only Needs A Few
Attention Heads For Visual Grounding" (CVPR 2025, arXiv 2503.06287): what a map has above its mean
falls into connected components (8 neighbours); the entropy is over their masses. It is low where
attention is in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.families import Family
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.types import Segment

_THRESHOLD = 0.001  # of what a map has above its mean
_NEIGHBOURS = np.zeros((3, 3, 3), dtype=bool)
_NEIGHBOURS[1] = True  # within a map, and not from one map to the next
_SQUARE = ("fixed", "anyres", "square", "tiles", "splits")  # grids whose whole picture is a square


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """Where the patches of a sample's one picture stand, in its view of the whole picture.

    Attributes:
        places: (patches,), their positions in the sequence.
        rows: (patches,), their rows.
        columns: (patches,), their columns.
    """

    places: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, batch: MultimodalBatch, row: int, family: Family) -> PatchGrid | None:
        """Find it; None where a sample has not one picture, or its grid is not known."""
        masks = batch.spans.masks
        if batch.image_counts[row] != 1:
            return None
        if batch.offsets is not None:  # rows and columns are its positions
            places = masks[Segment.IMAGE][row].nonzero()[:, 0]
            _, down, across = batch.offsets[:, row, places]
            return cls(places, down - down.min(), across - across.min())
        base, newline = masks.get(Segment.IMAGE_BASE), masks.get(Segment.IMAGE_NEWLINE)
        if base is None or newline is None or family.grid not in _SQUARE:
            return None
        places = (base & ~newline)[row].nonzero()[:, 0]
        side = isqrt(len(places))
        if not side or side**2 != len(places):
            return None
        index = torch.arange(len(places), device=places.device)
        return cls(places, index // side, index % side)

    def lay_out(self, weights: Tensor) -> Floats:
        """Return maps, (maps, rows, columns), of (maps, sequence) weights; 0 where no patch is."""
        shape = int(self.rows.max()) + 1, int(self.columns.max()) + 1
        maps = weights.new_zeros(len(weights), *shape, dtype=torch.float64)
        maps[:, self.rows, self.columns] = weights[:, self.places].double()
        laid: Floats = maps.cpu().numpy()
        return laid


def spatial_entropies(maps: Floats) -> Floats:
    """Return the spatial entropy of each map, in nats.

    A map with nothing above the threshold is as spread out as can be: its entropy is that of as
    many equal parts as it has patches. So is that of a map whose whole bottom row is above it, as
    where a head looks at the end of a picture and not at a thing.

    Args:
        maps: (maps, rows, columns), attention weights.
    """
    above = np.maximum(maps - maps.mean((1, 2), keepdims=True), 0)
    kept = above > _THRESHOLD
    components, count = ndimage.label(kept, _NEIGHBOURS)
    masses = np.bincount(components.ravel(), (above * kept).ravel(), minlength=count + 1)[1:]
    owner = _owners(components, count)
    totals = np.bincount(owner, masses, minlength=len(maps))
    shares = masses / totals[owner]
    entropies = np.bincount(owner, -shares * np.log(shares), minlength=len(maps))
    nowhere = (totals == 0) | kept[:, -1].all(1)
    found: Floats = np.where(nowhere, np.log(maps[0].size), entropies)
    return found


def _owners(components: NDArray[np.int32], count: int) -> NDArray[np.intp]:
    """Return in which map each component is, (components,)."""
    numbers = np.broadcast_to(np.arange(len(components))[:, None, None], components.shape)
    owner = np.zeros(count + 1, dtype=np.intp)
    owner[components] = numbers
    return owner[1:]
