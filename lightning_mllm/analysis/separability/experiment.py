"""Can perceptual and textual tokens be told apart inside the LLM? Numbers per layer, and maps.

Section 3 of Shukor and Cord (arXiv 2405.16700) shows maps of token means. A map shows what it shows; so there are two
numbers beside it: how well a linear classifier tells the two means of samples apart that it has not been trained on,
and the linear centred kernel alignment of the two (Kornblith et al., ICML 2019), which says whether samples that are
alike in one are alike in the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA  # type: ignore[import-untyped]
from sklearn.manifold import TSNE  # type: ignore[import-untyped]
from torch import Tensor

from lightning_mllm.analysis.core.analysis import STATISTICS
from lightning_mllm.analysis.core.result import AnalysisResult, Plot
from lightning_mllm.analysis.core.running_sums import Found
from lightning_mllm.analysis.core.token_sets import SETS, TokenSets
from lightning_mllm.analysis.separability.token_means import TokenMeans, name_of
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.probing import FeatureSet, LinearProbe, linear_cka
from lightning_mllm.statistics.jackknife import GROUPS, Floats, group_of, jackknife
from lightning_mllm.statistics.picture_bootstrap import no_numbers, share
from lightning_mllm.types import Sample

Method = Literal["tsne", "pca"]
_LEARNT = 2  # samples: the classifier holds one out to stop
MEASURES = ("classifier accuracy", "linear CKA")


class Distinguishability(TokenMeans):
    """Tells the token means of samples apart, by layer: classifier accuracy, which is 0.5 by chance, and linear CKA.

    The classifier, `LinearProbe`, learns from the first half of the groups of samples, and is scored on the others; its
    interval is that of the scored samples.

    Args:
        layers: At which; by default at all, 0 to L.
        samples: How many are drawn; their vectors are kept.
        sets: Which tokens count; attention sinks do not, where `sink_ratio` says what one is.
        groups: Into how many groups samples are put, for intervals.
        seed: Of groups, drawing and training.
        snapshot_every: Batches between two files of what is found so far.
        label: A name of your own.
    """

    default_name: ClassVar[str] = "distinguishability"

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
        super().__init__(
            layers=layers,
            samples=samples,
            sets=sets,
            groups=groups,
            seed=seed,
            snapshot_every=snapshot_every,
            label=label,
        )

    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse data without images, and so few samples that none is left to score the classifier on."""
        seen = [sample for sample in samples if sample.images]
        super().check(seen)
        names = self.drawn({name_of(sample.picture or sample.id, sample.id) for sample in seen})
        self._held_out([json.loads(name)[0] for name in names])

    def summarise(self, found: Found, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return both numbers with their intervals."""
        means, names, pictures = self.means(found)
        groups, held_out = self._held_out(pictures)
        coords: dict[str, tuple[Any, ...]] = {
            "tokens": (self.sets.variants[-1],),
            "measure": MEASURES,
            "layer": self.layers_of(means),
            "statistic": STATISTICS,
        }
        values = no_numbers(coords)
        values[0, 0] = self._accuracy(names, means, np.array(pictures), held_out)
        values[0, 1] = _cka(means, groups)
        plot = Plot(
            "distinguishability",
            "lines",
            x="layer",
            y="measure",
            shown={measure: measure for measure in MEASURES},
            fixed={},
            xlabel="Layers behind (0: embedding)",
            label="Accuracy, CKA",
            title="Token means of perceptual and textual tokens",
            over=GROUPS,
        )
        more = {"left_out": len(found.left_out), "seen": int(found.sums["n"].sum())}
        return AnalysisResult(
            self.name, values, tuple(coords), coords, len(names), {**settings, "found": more}, (plot,)
        )

    def _held_out(self, pictures: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the groups of samples with these pictures, and which are scored.

        Raises:
            DataError: None is, or there are too few others to learn from.
        """
        groups = np.array([group_of(picture, self.seed, self.groups) for picture in pictures])
        held_out = groups >= self.groups // 2
        scored, learnt = int(held_out.sum()), int((~held_out).sum())
        if learnt < _LEARNT or not scored:
            raise DataError(
                f"{self.name} learns from {_LEARNT} samples or more, those of half of its groups, and is scored on the "
                f"others; of {len(pictures)} samples it has {learnt} to learn from and {scored} to score. Use more "
                "samples, or another seed."
            )
        return groups, held_out

    def _accuracy(
        self, names: Sequence[str], means: Tensor, pictures: NDArray[Any], held_out: NDArray[np.bool_]
    ) -> Floats:
        """Return the accuracy on held-out samples, with the interval of a share over pictures, (layers, 4)."""
        train, test = (_features(names, means, half) for half in (~held_out, held_out))
        scores = LinearProbe().fit_score(train, test, seeds=[self.seed])
        right = np.stack([(score.predictions[0] == score.targets).double().numpy() for score in scores.values()], 1)
        _, numbers = np.unique(pictures[held_out], return_inverse=True)
        accuracy = share(right, np.tile(numbers, len(SETS)))  # a sample has a mean for each set of tokens
        accuracy[:, 3] = held_out.sum()
        return accuracy


class TokenMap(TokenMeans):
    """Draws the token means of samples on a plane, by layer; a sample has a point for each set of tokens.

    Args:
        method: `tsne` (perplexity 30, or as much as so few points allow) or `pca`.
        layers: At which; by default at all, 0 to L.
        samples: How many are drawn.
        sets: Which tokens count; attention sinks do not, where `sink_ratio` says what one is.
        seed: Of drawing and t-SNE.
        snapshot_every: Batches between two files of what is found so far.
        label: A name of your own.
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

    def summarise(self, found: Found, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the points: (layers, sets, samples, x and y)."""
        means, names, _ = self.means(found)
        coords: dict[str, tuple[Any, ...]] = {
            "layer": self.layers_of(means),
            "tokens": SETS,
            "sample": tuple(names),
            "coordinate": ("x", "y"),
        }
        points = [self._plane(layer.flatten(0, 1).numpy()) for layer in means.permute(1, 2, 0, 3)]
        values = np.stack(points).reshape(*map(len, coords.values()))
        more = {"left_out": len(found.left_out), "seen": int(found.sums["n"].sum())}
        plot = Plot(
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
        return AnalysisResult(
            self.name, values, tuple(coords), coords, len(names), {**settings, "found": more}, (plot,)
        )

    def _plane(self, points: NDArray[np.float32]) -> Floats:
        """Return (points, width) on a plane, (points, 2)."""
        perplexity = min(30.0, (len(points) - 1) / 3)
        method = (
            PCA(n_components=2, random_state=self.seed)
            if self.method == "pca"
            else TSNE(n_components=2, perplexity=perplexity, random_state=self.seed)
        )
        plane: Floats = method.fit_transform(points).astype(np.float64)
        return plane


def _features(names: Sequence[str], means: Tensor, rows: NDArray[np.bool_]) -> dict[str, FeatureSet]:
    """Return, per layer, what tells the sets of some samples apart: those of one set, then those of the other."""
    own = means[torch.from_numpy(rows)]
    ids = tuple(f"{name}/{each}" for each in SETS for name, row in zip(names, rows, strict=True) if row)
    targets = torch.arange(len(SETS)).repeat_interleave(len(own))
    return {
        str(place): FeatureSet(
            features=own[:, place].transpose(0, 1).flatten(0, 1), targets=targets, names=SETS, sample_ids=ids
        )
        for place in range(means.shape[1])
    }


def _cka(means: Tensor, groups: NDArray[np.int64]) -> Floats:
    """Return the alignment of the sets' means, (layers, 4); NaN where one of them is the same for all samples."""
    present, sizes = np.unique(groups, return_counts=True)
    value = _cka_of(means)
    without = np.stack([_cka_of(means[torch.from_numpy(groups != group)]) for group in present])
    return jackknife(value, without, sizes.astype(np.float64))


def _cka_of(means: Tensor) -> Floats:
    """Return the alignment at each layer of (samples, layers, sets, width)."""
    found = np.full(means.shape[1], np.nan)
    for place, (perceptual, textual) in enumerate(means.permute(1, 2, 0, 3)):
        if all(bool((each != each[:1]).any()) for each in (perceptual, textual)):
            found[place] = linear_cka(perceptual, textual)
    return found
