"""Heads that localise: does a head's attention from the last position fall on the object?

Kang et al. (CVPR 2025, arXiv 2503.06287) find that a few heads of an LLM look at what is asked
about. Here each head of each layer points at the patch that it attends to most from LAST. How often
that patch shows the object is its pointing accuracy; chance is the object's share of the patches.
The best of many heads is good by luck, too: so heads are ranked on one half of the pictures, and
what they reach is reported on the other.

Their own criteria need no boxes (`criteria`): the sum of a head's attention on the image, which has
to reach the elbow of all heads' sums, and the spatial entropy of its map (`maps`), of which the
lowest win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_mllm.analysis.attention.maps import PatchGrid, spatial_entropies
from lightning_mllm.analysis.attention.pointing_summary import summarise_pointing
from lightning_mllm.analysis.core.per_question import PerQuestionAnswer, QuestionAnalysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.forward.attention import (
    QueryRows,
    check_attention_weights,
    observe_attention,
)
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import Match
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import run_layers_uncompiled
from lightning_mllm.statistics.picture_bootstrap import Bootstrap
from lightning_mllm.types import Segment, Table


@dataclass(frozen=True, kw_only=True)
class PointingRow:
    """A question, a layer and a head; a question that is left out has one row, without a head.

    Attributes:
        sample_id: Id of the question's sample.
        kind: Kind of the question.
        picture: Name of the picture that it is about.
        correct: Whether the model answers it right; False where it is not asked.
        measured: Whether its attention is looked at.
        layer: Number of the layer, from 0.
        head: Number of the head, from 0.
        hit: 1 if the patch that the head attends to most shows the object, else 0; NaN without
            boxes.
        chance: Share of the patches that show the object; NaN without boxes.
        image: Share of the head's attention that image tokens get.
        entropy: Spatial entropy of its map, in nats; NaN where the patches' grid is not known.
    """

    sample_id: str
    kind: str
    picture: str
    correct: bool
    measured: bool = True
    layer: int = -1
    head: int = -1
    hit: float = nan
    chance: float = nan
    image: float = nan
    entropy: float = nan


class AttentionPointing(QuestionAnalysis[PointingRow]):
    """Ranks heads by how often they point at what a question is about.

    Args:
        best: How many heads are named, by boxes; by the criteria without boxes it is three, as
            published.
        kinds: How the names of the kinds begin that count, such as seen/QueryAttr; by default all.
            Of a question about several things it is not known at which a head should point.
        seed: Seed by which pictures are put into the half that ranks or the half that reports.
        correct_only: Whether only questions count that the model answers right.
        match: When an answer is right. `normalised` ignores case, quotes, full stops and blanks.
            `paper`, as in the study of information flow, ignores only case and the blanks around
            the answer.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default
            all.
        bootstrap: How intervals are drawn.
        label: A name of your own for this analysis and its folder.

    Raises:
        ConfigError: No head is to be named.
    """

    row_type = PointingRow
    default_name: ClassVar[str] = "pointing"

    def __init__(
        self,
        *,
        best: int = 5,
        kinds: Sequence[str] | None = None,
        seed: int = 0,
        correct_only: bool = False,
        match: Match = "normalised",
        kind_depth: int | None = None,
        bootstrap: Bootstrap = Bootstrap(),
        label: str = "",
    ) -> None:
        super().__init__(
            correct_only=correct_only,
            match=match,
            kind_depth=kind_depth,
            bootstrap=bootstrap,
            label=label,
        )
        if best < 1:
            raise ConfigError(f"AttentionPointing.best must be at least 1, not {best}.")
        self.best, self.kinds, self.seed = best, kinds, seed

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the rows."""
        return self.shared_settings

    def check_model(self, backbone: Backbone) -> None:
        """Refuse a model whose attention weights can't be computed."""
        check_attention_weights(backbone)

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[PerQuestionAnswer]
    ) -> list[list[PointingRow]]:
        """Run the model once, and look at each layer's attention from LAST."""
        batch = batch.to(backbone.model.device)
        targets = _PatchTargets.of(batch)
        grids = [PatchGrid.of(batch, row, backbone.family) for row in range(len(batch))]
        rows: list[list[PointingRow]] = [[] for _ in questions]

        def look(layer: int, weights: Tensor) -> None:
            every = weights[:, :, 0].to(targets.image.device)  # (batch, heads, keys)
            hits, images = targets.find_hits(every).tolist(), targets.sum_image(every).tolist()
            for row, question in enumerate(questions):
                entropies = _find_entropies(every[row], grids[row])
                for head, entropy in enumerate(entropies):
                    rows[row].append(
                        PointingRow(
                            **question.columns,
                            layer=layer,
                            head=head,
                            hit=hits[row][head],
                            chance=targets.chance[row],
                            image=images[row][head],
                            entropy=entropy,
                        )
                    )

        last = QueryRows.of(batch.spans[Segment.LAST])
        with observe_attention(backbone, last, look):
            run_layers_uncompiled(backbone, batch)
        return rows

    def left_out(self, question: PerQuestionAnswer) -> PointingRow:
        """Return the row of a question that the model answers wrongly."""
        return PointingRow(**question.columns, measured=False)

    def summarise(self, table: Table, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the numbers per kind, layer and head, and the heads that are named."""
        return summarise_pointing(
            table,
            name=self.name,
            best=self.best,
            kinds=self.kinds,
            seed=self.seed,
            kind_depth=self.kind_depth,
            bootstrap=self.bootstrap,
            settings=settings,
        )


@dataclass(frozen=True, eq=False)
class _PatchTargets:
    """What heads can point at, and what they should.

    Attributes:
        image: (batch, sequence) bool, tokens of images.
        patches: (batch, sequence) bool, tokens that show something or nothing, no separators.
        object: (batch, sequence) bool, those of the object.
        chance: Share of the patches that are the object's, per sample; NaN where there is none.
    """

    image: Tensor
    patches: Tensor
    object: Tensor
    chance: list[float]

    @classmethod
    def of(cls, batch: MultimodalBatch) -> _PatchTargets:
        """Find them; sets that the batch does not know are empty."""
        masks = batch.spans.masks
        nowhere = torch.zeros_like(batch.attention_mask.bool())
        image = masks.get(Segment.IMAGE, nowhere)
        patches = image & ~masks.get(Segment.IMAGE_NEWLINE, nowhere)
        shown = masks.get(Segment.IMAGE_OBJECT, nowhere)
        chance = (shown.sum(1) / patches.sum(1)).masked_fill(~shown.any(1), nan)
        return cls(image, patches, shown, chance.tolist())

    def find_hits(self, weights: Tensor) -> Tensor:
        """Return whether the patch with the largest weight is the object's, (batch, heads)."""
        best = weights.masked_fill(~self.patches[:, None], -1.0).argmax(-1)
        hits = self.object.gather(1, best).float()
        return hits.masked_fill(~self.object.any(1, keepdim=True), nan)

    def sum_image(self, weights: Tensor) -> Tensor:
        """Return the share of image tokens, (batch, heads)."""
        return (weights * self.image[:, None]).sum(-1)


def _find_entropies(weights: Tensor, grid: PatchGrid | None) -> list[float]:
    """Return the spatial entropy of each head's map, of (heads, sequence) weights."""
    if grid is None:
        return [nan] * len(weights)
    entropies: list[float] = np.round(spatial_entropies(grid.lay_out(weights)), 6).tolist()
    return entropies
