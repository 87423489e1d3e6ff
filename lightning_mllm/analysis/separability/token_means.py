"""Analyses of the mean of a sample's perceptual tokens and that of its textual ones, per layer.

They need the samples side by side, so a few vectors of each sample are kept. Of many samples only
some are drawn: those with the lowest `seed_rank_of`, which depends on a seed and their names alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.analysis.core.headline import Headline
from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.analysis.core.running_sums import RunningSums
from lightning_mllm.analysis.core.streamed import StreamedAnalysis
from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.analysis.forward.observe import ObservedState, observe_stream
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.store.seeds import draw_by_seed


class TokenMeans(StreamedAnalysis):
    """Keeps the token means of drawn samples.

    Args:
        layers: The layers at which tokens are averaged; by default all, 0 to L.
        samples: Number of samples that are drawn; their vectors are kept.
        sets: Which tokens count. Attention sinks do not, where `sink_ratio` defines them.
        groups: Number of groups that samples are put into, for intervals.
        seed: Seed of everything that is drawn or trained.
        snapshot_every: Number of batches between two files of what is found so far.
        label: Name of the analysis and its folder, where one run has several of its class.
    """

    def __init__(
        self,
        *,
        layers: Sequence[int] | None = None,
        samples: int = 200,
        sets: TokenSets = TokenSets(sink_ratio=None),
        groups: int = 16,
        seed: int = 0,
        snapshot_every: int = 50,
        label: str = "",
    ) -> None:
        self.layers, self.samples = None if layers is None else tuple(layers), samples
        super().__init__(
            sets=sets, groups=groups, seed=seed, snapshot_every=snapshot_every, label=label
        )
        if samples < 2 or (layers is not None and (not layers or len(set(layers)) < len(layers))):
            raise ConfigError(
                f"{self.name} needs two samples or more, and layers, each once, or null for all; "
                f"found samples={samples} and layers={layers}."
            )

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides which vectors are kept."""
        return {
            "layers": None if self.layers is None else list(self.layers),
            "samples": self.samples,
            "sets": asdict(self.sets),
            "groups": self.groups,
            "seed": self.seed,
        }

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, masks: Tensor
    ) -> dict[str, Tensor]:
        """Return the token means of the samples that are drawn, and NaN for others.

        The model is not run on the others.
        """
        depth = len(decoder_layers(backbone))
        layers = tuple(range(depth + 1)) if self.layers is None else self.layers
        for layer in layers:
            if not 0 <= layer <= depth:
                raise ConfigError(
                    f"{self.name}.layers has {layer}; the model has states 0 to {depth}."
                )
        drawn = self.drawn({*self.found.kept, *_names(batch)})
        rows = [row for row, name in enumerate(_names(batch)) if name in drawn]
        found: dict[int, Tensor] = {}

        def observe(_: ObservedState, layer: int, states: Tensor) -> None:
            if layer in layers:
                counted = masks[rows].any(1)[..., None]
                exact = states.double().masked_fill(~counted, 0)  # whatever padding has
                kept = self.sets.kept(masks[rows], exact.norm(dim=-1))[:, -1].double()
                found[layer] = (kept / kept.sum(-1, keepdim=True)) @ exact

        if not rows:
            return {}
        observe_stream(backbone, batch.take(rows), (ObservedState.RESIDUAL,), observe)
        means = torch.stack([found[layer] for layer in layers], dim=1).float().cpu()
        every = torch.full((len(batch), *means.shape[1:]), torch.nan)
        every[rows] = means
        return {"means": every}

    def add(self, measured: Mapping[str, Tensor], batch: MultimodalBatch) -> None:
        """Keep the vectors of samples that are drawn."""
        super().add({}, batch)
        kept = dict(self.found.kept)
        for name, own in zip(_names(batch), measured.get("means", ()), strict=False):
            kept[name] = own.clone()
        self.found.kept = {name: kept[name] for name in self.drawn({*kept})}

    def means(self, found: RunningSums) -> tuple[Tensor, list[str], list[str]]:
        """Return the token means of the drawn samples, their ids and their pictures.

        The token means are (samples, layers, sets, width).
        """
        names = sorted(self.drawn({*found.kept}))
        pictures, ids = zip(*map(json.loads, names), strict=True)
        return torch.stack([found.kept[name] for name in names]), list(ids), list(pictures)

    def make_result(
        self,
        values: Floats,
        coords: Mapping[str, tuple[Any, ...]],
        settings: Mapping[str, Any],
        *,
        found: RunningSums,
        n: int,
        plot: ResultPlot,
        headline: Headline,
    ) -> AnalysisResult:
        """Return a result with the numbers of samples that were left out and seen."""
        more = {"left_out": len(found.left_out), "seen": int(found.sums["n"].sum())}
        settings = {**settings, "found": more}
        return AnalysisResult(
            self.name, values, tuple(coords), coords, n, settings, (plot,), headline
        )

    def layers_of(self, means: Tensor) -> tuple[int, ...]:
        """Return the layers of token means."""
        return tuple(range(means.shape[1])) if self.layers is None else self.layers

    def drawn(self, names: set[str]) -> set[str]:
        """Return which of these names are drawn."""
        return draw_by_seed(names, self.samples, self.seed)


def _names(batch: MultimodalBatch) -> list[str]:
    """Return the names under which vectors are kept: picture and id."""
    return list(map(name_of_token_means, batch.pictures, batch.sample_ids))


def name_of_token_means(picture: str, sample_id: str) -> str:
    """Return the name under which a sample's vectors are kept."""
    return json.dumps([picture, sample_id])
