"""Can perceptual and textual tokens be told apart inside the LLM? Numbers, per layer.

Section 3 of Shukor and Cord (arXiv 2405.16700) shows maps of token means (`TokenMap`). A map shows
what it shows; so there are two numbers beside it: how well a linear classifier tells the two means
of samples apart that it has not been trained on, and the linear centred kernel alignment of the two
(Kornblith et al., ICML 2019), which says whether samples that are alike in one are alike in the
other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_mllm.analysis.core.headline import make_layers_headline
from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.analysis.core.running_sums import RunningSums
from lightning_mllm.analysis.core.token_sets import SETS
from lightning_mllm.analysis.separability.token_means import TokenMeans, name_of_token_means
from lightning_mllm.errors import DataError
from lightning_mllm.probing import FeatureSet, LinearProbe, linear_cka
from lightning_mllm.statistics.interval import STATISTICS, N, missing_interval
from lightning_mllm.statistics.jackknife import GROUPS, jackknife, jackknife_group
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.statistics.picture_bootstrap import bootstrap_share
from lightning_mllm.types import Sample

_LEARNT = 2  # samples: the classifier holds one out to stop
MEASURES = ("classifier accuracy", "linear CKA")


class Distinguishability(TokenMeans):
    """Tells perceptual from textual token means, by layer: classifier accuracy and linear CKA.

    The accuracy is 0.5 by chance. The classifier, `LinearProbe`, is trained on the samples of half
    of the groups, and scored on the others; its interval is that of the scored samples.

    Args:
        layers: The layers at which tokens are averaged; by default all, 0 to L.
        samples: Number of samples that are drawn; their vectors are kept.
        sets: Which tokens count. Attention sinks do not, where `sink_ratio` defines them.
        groups: Number of groups that samples are put into, for intervals.
        seed: Seed of groups, drawing and training.
        snapshot_every: Number of batches between two files of what is found so far.
        label: Name of the analysis and its folder, where one run has several of its class.
    """

    default_name: ClassVar[str] = "distinguishability"

    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse data without images, and too few samples to train and score the classifier."""
        with_images: list[Sample] = []
        pictures: dict[str, str] = {}  # by the names under which vectors are kept
        for sample in samples:
            if sample.images:
                with_images.append(sample)
                picture = sample.picture or sample.id
                pictures[name_of_token_means(picture, sample.id)] = picture
        super().check(with_images)
        self._held_out([pictures[name] for name in self.drawn({*pictures})])

    def summarise(self, found: RunningSums, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return both numbers with their intervals."""
        means, names, pictures = self.means(found)
        groups, held_out = self._held_out(pictures)
        coords: dict[str, tuple[Any, ...]] = {
            "tokens": (self.sets.variants[-1],),
            "measure": MEASURES,
            "layer": self.layers_of(means),
            "statistic": STATISTICS,
        }
        values = missing_interval(coords)
        values[0, 0] = self._accuracy(names, means, np.array(pictures), held_out)
        values[0, 1] = _estimate_cka(means, groups)
        plot = ResultPlot(
            "distinguishability",
            "lines",
            x="layer",
            y="measure",
            shown={measure: measure for measure in MEASURES},
            fixed={},
            xlabel="After layer (0: embedding)",
            label="Accuracy, CKA",
            title="Token means of perceptual and textual tokens",
            over=GROUPS,
            chance=0.5,  # as many perceptual as textual means
        )
        headline = make_layers_headline(
            values[0],
            MEASURES,
            coords["layer"],
            "How well perceptual and textual tokens are told apart; by chance the accuracy is 0.5.",
        )
        return self.make_result(
            values, coords, settings, found=found, n=len(names), plot=plot, headline=headline
        )

    def _held_out(self, pictures: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the groups of samples with these pictures, and which are scored.

        Raises:
            DataError: No sample is scored, or there are too few others to learn from.
        """
        groups = np.array(
            [jackknife_group(picture, self.seed, self.groups) for picture in pictures]
        )
        held_out = groups >= self.groups // 2
        scored, learnt = int(held_out.sum()), int((~held_out).sum())
        if learnt < _LEARNT or not scored:
            raise DataError(
                f"{self.name} learns from {_LEARNT} samples or more, those of half of its groups, "
                f"and is scored on the others; of {len(pictures)} samples it has {learnt} to "
                f"learn from and {scored} to score. Use more samples, or another seed."
            )
        return groups, held_out

    def _accuracy(
        self,
        names: Sequence[str],
        means: Tensor,
        pictures: NDArray[Any],
        held_out: NDArray[np.bool_],
    ) -> Floats:
        """Return the statistics of the accuracy on held-out samples, (layers, 4)."""
        train = _make_features(names, means, ~held_out)
        test = _make_features(names, means, held_out)
        right = []
        for score in LinearProbe().fit_score(train, test, seeds=[self.seed]).values():
            right.append((score.predictions[0] == score.targets).double().numpy())
        _, numbers = np.unique(pictures[held_out], return_inverse=True)
        of_means = np.tile(numbers, len(SETS))  # a sample has a mean for each set of tokens
        accuracy = bootstrap_share(np.stack(right, 1), of_means)
        accuracy[:, N] = held_out.sum()
        return accuracy


def _make_features(
    names: Sequence[str], means: Tensor, rows: NDArray[np.bool_]
) -> dict[str, FeatureSet]:
    """Return, per layer, the means of some samples, with their sets of tokens as targets.

    The means of all samples' first set come first, then those of the second.
    """
    own = means[torch.from_numpy(rows)]
    own_names = [names[row] for row in np.flatnonzero(rows).tolist()]
    ids = tuple(f"{name}/{each}" for each, name in product(SETS, own_names))
    targets = torch.arange(len(SETS)).repeat_interleave(len(own))
    found: dict[str, FeatureSet] = {}
    for place in range(means.shape[1]):
        features = own[:, place].transpose(0, 1).flatten(0, 1)
        found[str(place)] = FeatureSet(
            features=features, targets=targets, names=SETS, sample_ids=ids
        )
    return found


def _estimate_cka(means: Tensor, groups: NDArray[np.int64]) -> Floats:
    """Return the statistics of the CKA of the sets' means, (layers, 4).

    They are NaN where the means of a set are the same for all samples.
    """
    present, sizes = np.unique(groups, return_counts=True)
    value = _compute_cka(means)
    without = [_compute_cka(means[torch.from_numpy(groups != group)]) for group in present]
    return jackknife(value, np.stack(without), sizes.astype(np.float64))


def _compute_cka(means: Tensor) -> Floats:
    """Return the CKA at each layer, of (samples, layers, sets, width) means."""
    found = np.full(means.shape[1], np.nan)
    for place, (perceptual, textual) in enumerate(means.permute(1, 2, 0, 3)):
        varied = bool((perceptual != perceptual[:1]).any() and (textual != textual[:1]).any())
        if varied:
            found[place] = linear_cka(perceptual, textual)
    return found
