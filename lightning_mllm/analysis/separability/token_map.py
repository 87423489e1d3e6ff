"""Maps of perceptual and textual token means, per layer.

Section 3 of Shukor and Cord (arXiv 2405.16700) shows such maps. A map shows what it shows:
`Distinguishability` has the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.analysis.core.headline import Headline
from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.analysis.core.running_sums import RunningSums
from lightning_mllm.analysis.core.token_sets import SETS, TokenSets
from lightning_mllm.analysis.separability.token_means import TokenMeans
from lightning_mllm.errors import ConfigError
from lightning_mllm.statistics.missing import Floats

Method = Literal["tsne", "pca"]


class TokenMap(TokenMeans):
    """Draws the token means of samples on a plane, by layer.

    A sample has a point for each set of tokens.

    Args:
        method: How points are put on the plane: `tsne` (perplexity 30, or less where there are few
            points) or `pca`.
        layers: The layers at which tokens are averaged; by default all, 0 to L.
        samples: Number of samples that are drawn.
        sets: Which tokens count. Attention sinks do not, where `sink_ratio` defines them.
        seed: Seed of drawing and t-SNE.
        snapshot_every: Number of batches between two files of what is found so far.
        label: Name of the analysis and its folder, where one run has several of its class.
    """

    default_name: ClassVar[str] = "token_map"

    def __init__(
        self,
        *,
        method: Method = "tsne",
        layers: Sequence[int] | None = None,
        samples: int = 200,
        sets: TokenSets = TokenSets(sink_ratio=None),
        seed: int = 0,
        snapshot_every: int = 50,
        label: str = "",
    ) -> None:
        if method not in ("tsne", "pca"):
            raise ConfigError(f"TokenMap.method is {method!r}; it can be 'tsne' or 'pca'.")
        self.method = method
        super().__init__(
            layers=layers,
            samples=samples,
            sets=sets,
            groups=2,
            seed=seed,
            snapshot_every=snapshot_every,
            label=label,
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the map."""
        return {"method": self.method, **super().settings}

    def summarise(self, found: RunningSums, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the points: (layers, sets, samples, x and y)."""
        means, names, _ = self.means(found)
        coords: dict[str, tuple[Any, ...]] = {
            "layer": self.layers_of(means),
            "tokens": SETS,
            "sample": tuple(names),
            "coordinate": ("x", "y"),
        }
        points = []
        for layer in means.permute(1, 2, 0, 3):
            points.append(self._plane(layer.flatten(0, 1).numpy()))
        values = np.stack(points).reshape(*map(len, coords.values()))
        plot = ResultPlot(
            "map",
            "points",
            x="sample",
            y="tokens",
            shown={each: each for each in SETS},
            fixed={},
            xlabel="",
            label="",
            title=f"Token means on a plane ({self.method}); lines join the tokens of a sample",
        )
        headline = Headline("A map has no main numbers: look at the figure.")
        return self.make_result(
            values, coords, settings, found=found, n=len(names), plot=plot, headline=headline
        )

    def _plane(self, points: NDArray[np.float32]) -> Floats:
        """Return (points, width) on a plane, (points, 2)."""
        from sklearn.decomposition import PCA  # type: ignore[import-untyped] # noqa: PLC0415  # slow
        from sklearn.manifold import TSNE  # type: ignore[import-untyped] # noqa: PLC0415

        perplexity = min(30.0, (len(points) - 1) / 3)
        method = (
            PCA(n_components=2, random_state=self.seed)
            if self.method == "pca"
            else TSNE(n_components=2, perplexity=perplexity, random_state=self.seed)
        )
        plane: Floats = method.fit_transform(points).astype(np.float64)
        return plane
