"""Where attention goes: from question, last position and answer to object, controls and the rest.

Of each layer and head, the attention weights of a target's positions are averaged over these
positions and summed over sets of tokens (`key_sets`). The weights are those that the model computes
with (`forward.attention`): nothing is kept but the sums, and the model runs with sdpa.

Attention is no use of what is attended to: values can be small, and information can have moved
before. A knockout says what the answer loses; see `InformationFlow`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import nan
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_mllm.analysis.attention.key_sets import KeySets
from lightning_mllm.analysis.attention.rows import AttentionRow
from lightning_mllm.analysis.attention.shares_summary import summarise_attention
from lightning_mllm.analysis.core.per_question import PerQuestionAnswer, QuestionAnalysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.forward.attention import (
    QueryRows,
    check_attention_weights,
    observe_attention,
)
from lightning_mllm.analysis.forward.observe import ObservedState, observe_stream
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.evaluation import Match
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.statistics.picture_bootstrap import Bootstrap
from lightning_mllm.types import Segment, Table

_DIGITS = 7  # of a share, which is a float32


class AttentionShares(QuestionAnalysis[AttentionRow]):
    """Sums the attention that goes to the object, to controls, and to everything else.

    Args:
        targets: Segments whose positions look, such as question, last and answer.
        heads: Whether each head has numbers of its own, beside the mean of a layer's heads. Rows
            grow with the number of heads: 1,024 of them take about 100 kB per question and target.
        sink_ratio: From how many times the median norm on a token is an attention sink; with null
            only the first token is one.
        correct_only: Whether only questions count that the model answers right.
        match: When an answer is right. `normalised` ignores case, quotes, full stops and blanks.
            `paper`, as in the study of information flow, ignores only case and the blanks around
            the answer.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default
            all.
        bootstrap: How intervals are drawn.
        label: A name of your own for this analysis and its folder.

    Raises:
        ConfigError: A target is not a segment, or comes twice; or `sink_ratio` is not above 1.
    """

    row_type = AttentionRow
    default_name: ClassVar[str] = "attention"

    def __init__(
        self,
        *,
        targets: Sequence[str] = ("question", "last"),
        heads: bool = True,
        sink_ratio: float | None = 10.0,
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
        known = set(map(str, Segment))
        if not targets or len({*targets}) < len(targets) or not known.issuperset(targets):
            raise ConfigError(
                f"AttentionShares.targets are segments, each once, not {', '.join(targets)}. "
                f"There are: {', '.join(Segment)}."
            )
        if sink_ratio is not None and sink_ratio <= 1:
            raise ConfigError(
                f"AttentionShares.sink_ratio is {sink_ratio}; it must be above 1, or null for no "
                "sinks but the first token."
            )
        self.targets = tuple(map(Segment, targets))
        self.heads, self.sink_ratio = heads, sink_ratio

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the rows."""
        own = {"targets": [*self.targets], "heads": self.heads, "sink_ratio": self.sink_ratio}
        return {**own, **self.shared_settings}

    def check_model(self, backbone: Backbone) -> None:
        """Refuse a model whose attention weights can't be computed."""
        check_attention_weights(backbone)

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[PerQuestionAnswer]
    ) -> list[list[AttentionRow]]:
        """Run the model once, and sum the weights layer by layer."""
        batch = batch.to(backbone.model.device)
        keys, targets = KeySets.of(batch, self.sink_ratio), self._find_targets(batch)
        found = _sum_weights(backbone, batch, keys, targets)
        shares = {name: each.tolist() for name, each in found.shares.items()}
        sinks, counts = found.sinks.tolist(), _count_patches(keys)
        depth, heads = found.shares["text"].shape[1], found.shares["text"].shape[3]
        looking = [*product(range(depth), range(len(self.targets)), range(heads))]
        rows: list[list[AttentionRow]] = []
        for row, question in enumerate(questions):
            shared: dict[str, Any] = {
                **question.columns,
                **{name: int(each[row]) for name, each in counts.items()},
            }
            own = []
            for layer, target, head in looking if self.heads else looking[::heads]:
                cells = {
                    k: round(each[row][layer][target][head], _DIGITS) for k, each in shares.items()
                }
                place: dict[str, Any] = {
                    "target": str(self.targets[target]),
                    "layer": layer,
                    "head": head - 1,
                }
                own.append(AttentionRow(**shared, **place, **cells, sink_tokens=sinks[row][layer]))
            rows.append(own)
        return rows

    def _find_targets(self, batch: MultimodalBatch) -> Tensor:
        """Return the positions of each target, (batch, targets, sequence) bool."""
        if lacking := sorted(set(self.targets).difference(batch.spans.masks)):
            raise DataError(
                f"The batch does not say where {str(lacking[0])!r} is; it has "
                f"{', '.join(batch.spans.masks)}. Collate it with this segment, or leave it out of "
                "AttentionShares.targets."
            )
        return torch.stack([batch.spans[target] for target in self.targets], dim=1)

    def left_out(self, question: PerQuestionAnswer) -> AttentionRow:
        """Return the row of a question that the model answers wrongly."""
        return AttentionRow(**question.columns, measured=False)

    def summarise(self, table: Table, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the numbers per kind, target, set, head and layer."""
        return summarise_attention(
            table,
            name=self.name,
            kind_depth=self.kind_depth,
            bootstrap=self.bootstrap,
            settings=settings,
        )


@dataclass(frozen=True, eq=False)
class _WeightSums:
    """What the weights of a batch add up to.

    Attributes:
        shares: Name of a set -> (batch, layers, targets, 1 + heads); the first of the heads is
            their mean. NaN where a target is nowhere, or the set is one of patches and is nowhere.
        sinks: (batch, layers), number of sinks.
    """

    shares: dict[str, Tensor]
    sinks: Tensor


def _sum_weights(
    backbone: Backbone, batch: MultimodalBatch, keys: KeySets, targets: Tensor
) -> _WeightSums:
    """Run the model once; of each layer only sums are kept."""
    rows = QueryRows.of(targets.any(1))
    index = rows.index[:, None].expand(-1, targets.shape[1], -1)
    looks = (targets.gather(2, index) & rows.valid[:, None]).float()
    looks /= looks.sum(-1, keepdim=True)  # NaN where nothing looks
    sets: dict[str, Tensor] = {}
    found: list[Tensor] = []
    sinks: list[Tensor] = []

    def find_sets(_: ObservedState, __: int, states: Tensor) -> None:
        sets.update(keys.at(states.float().norm(dim=-1)), image=keys.image)

    def add_up(_: int, weights: Tensor) -> None:
        mean = torch.einsum("btr,bhrk->bthk", looks, weights.to(looks))
        masks = torch.stack([*sets.values()], dim=1).to(looks)  # (batch, sets, keys)
        sums = torch.einsum("bthk,bsk->bsth", mean, masks)
        found.append(torch.cat([sums.mean(-1, keepdim=True), sums], dim=-1))
        sinks.append(sets["sinks"].sum(1))

    with observe_attention(backbone, rows, add_up):
        observe_stream(backbone, batch, [ObservedState.RESIDUAL], find_sets)
    shares = dict(zip(sets, torch.stack(found, dim=2).unbind(1), strict=True))
    for name, none in keys.lacking().items():
        shares[name] = shares[name].masked_fill(none[:, None, None, None], nan)
    return _WeightSums(shares, torch.stack(sinks, dim=1))


def _count_patches(keys: KeySets) -> dict[str, Tensor]:
    shown = keys.shown
    return {
        "control_overlap": (shown["random"] & shown["object"]).sum(1),
        "object_patches": shown["object"].sum(1),
        "image_patches": keys.image.sum(1),
    }
