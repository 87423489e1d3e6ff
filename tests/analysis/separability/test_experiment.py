"""What is told apart is told apart, what is not is not, and maps hold every sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA  # type: ignore[import-untyped]

from lightning_mllm.analysis.core.running_sums import RunningSums
from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.analysis.separability.experiment import Distinguishability
from lightning_mllm.analysis.separability.token_map import TokenMap
from lightning_mllm.analysis.separability.token_means import TokenMeans
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.probing import linear_cka
from lightning_mllm.statistics.jackknife import jackknife, jackknife_group
from lightning_mllm.types import Sample
from tests.support.alignment_by_hand import samples_by_hand
from tests.support.decoders import LAYERS, make_backbone
from tests.support.questions import batches, question
from tests.support.streamed_contract import StreamedContract

SEED = 0


class TestDistinguishability(StreamedContract):
    tolerance = 1e-6

    def make(self, **options: Any) -> Distinguishability:
        return Distinguishability(**{"groups": 2, "layers": (0, 2), **options})


class TestTokenMap(StreamedContract):
    tolerance = 1e-3

    def make(self, **options: Any) -> TokenMap:
        return TokenMap(**{"method": "pca", **options})


def found(means: torch.Tensor) -> RunningSums:
    names = [f'["p{k}", "s{k}"]' for k in range(len(means))]
    return RunningSums({"n": torch.tensor([len(means)])}, dict(zip(names, means, strict=True)))


def drawn(analysis: TokenMeans, means: torch.Tensor) -> Any:
    return analysis.summarise(found(means), {})


def test_token_means_are_those_by_hand(tiny_llava: str) -> None:
    backbone, analysis = make_backbone(tiny_llava), Distinguishability(layers=(0, 3))
    for batch in batches(tiny_llava, 4):
        analysis.update(backbone, batch)

    means, names, _ = analysis.means(analysis.found)

    samples = samples_by_hand(backbone, batches(tiny_llava, 4))
    assert names == [f"test-{k}" for k in range(6)]
    for own, sample in zip(means, samples, strict=True):
        for place, layer in enumerate((0, 3)):
            for k in (0, 1):
                np.testing.assert_allclose(
                    own[place, k], sample[layer][k].mean(0), rtol=1e-5, atol=1e-6
                )


def test_what_stands_in_padding_is_in_no_mean(tiny_llava: str) -> None:
    backbone, (batch,) = make_backbone(tiny_llava), batches(tiny_llava, 6, padding_side="left")
    expected, found = Distinguishability(), Distinguishability()
    expected.update(backbone, batch)
    layers: Any = backbone.decoder.layers
    real = batch.attention_mask.bool()[..., None]

    with layers[-1].register_forward_hook(lambda _, __, output: output.where(real, torch.nan)):
        found.update(backbone, batch)

    torch.testing.assert_close(found.found.kept, expected.found.kept)


def test_sinks_are_in_no_mean_where_there_is_a_ratio(tiny_llava: str) -> None:
    backbone, analysis = (
        make_backbone(tiny_llava),
        TokenMap(layers=(2,), sets=TokenSets(sink_ratio=1.02)),
    )
    for batch in batches(tiny_llava, 4):
        analysis.update(backbone, batch)

    means, *_ = analysis.means(analysis.found)

    for own, sample in zip(means, samples_by_hand(backbone, batches(tiny_llava, 4)), strict=True):
        for k, tokens in enumerate(sample[2]):
            norms = np.linalg.norm(tokens, axis=1)
            kept = norms <= 1.02 * np.median(norms)
            assert 0 < kept.sum() < len(kept)
            np.testing.assert_allclose(own[0, k], tokens[kept].mean(0), rtol=1e-5, atol=1e-6)


def test_no_more_samples_are_read_than_are_drawn(tiny_llava: str) -> None:
    backbone = make_backbone(tiny_llava)
    runs = [Distinguishability(samples=2, layers=(1,)) for _ in range(2)]
    for analysis, size in zip(runs, (1, 6), strict=True):
        for batch in batches(tiny_llava, size):
            analysis.update(backbone, batch)

    first, second = (analysis.found.kept for analysis in runs)
    assert len(first) == 2
    assert first.keys() == second.keys()
    assert runs[0].found.sums["n"].sum() == 6


def test_sets_that_differ_are_told_apart_and_those_that_do_not_are_not() -> None:
    torch.manual_seed(SEED)
    alike = torch.randn(400, 1, 2, 6)
    apart = alike + torch.tensor([3.0, -3.0])[:, None]

    result = drawn(Distinguishability(samples=400), torch.cat([alike, apart], dim=1))

    chance, certain = result.at(tokens="all", measure="classifier accuracy")
    assert chance[1] < 0.5 < chance[2] or abs(chance[0] - 0.5) < 0.05
    assert certain[0] > 0.99
    assert certain[1] < certain[2] - 0.01  # where no mistake is made, too
    assert 0 < chance[3] < 400


def test_cka_is_that_of_the_two_sets_and_its_interval_leaves_out_groups() -> None:
    torch.manual_seed(SEED)
    perceptual = torch.randn(60, 8)
    textual = perceptual @ torch.linalg.qr(torch.randn(8, 8)).Q + 0.5 * torch.randn(60, 8)
    means = torch.stack([perceptual, textual], dim=1)[:, None]

    result = drawn(Distinguishability(), torch.cat([means, means[:, :, [0, 0]]], dim=1))

    value, low, high, n = result.at(tokens="all", measure="linear CKA", layer=0)
    names = sorted(found(means).kept)
    order = [int(name.split('"')[3][1:]) for name in names]
    assert value == pytest.approx(linear_cka(perceptual[order], textual[order]))
    groups = np.array([jackknife_group(f"p{k}", 0, 16) for k in order])
    present, sizes = np.unique(groups, return_counts=True)
    left = [[k for k, own in zip(order, groups, strict=True) if own != group] for group in present]
    without = np.array([linear_cka(perceptual[rows], textual[rows]) for rows in left])
    expected = jackknife(np.array(value), without, sizes.astype(np.float64))
    np.testing.assert_allclose([value, low, high, n], expected, rtol=1e-5)
    assert high - low > 0.01
    assert result.at(
        tokens="all", measure="linear CKA", layer=1, statistic="value"
    ) == pytest.approx(1.0)


def test_states_that_are_the_same_for_all_samples_have_no_cka() -> None:
    means = torch.randn(20, 1, 2, 4)
    means[:, :, 1] = means[0, :, 1]

    result = drawn(Distinguishability(), means)

    assert np.isnan(result.at(tokens="all", measure="linear CKA")[:, 0]).all()


def test_samples_of_which_too_few_are_in_a_half_are_refused() -> None:
    seed = next(
        k for k in range(99) if sum(jackknife_group(f"test-{n}", k, 16) < 8 for n in range(3)) == 1
    )

    with pytest.raises(DataError, match="of 1 samples it has 0 to learn from and 1 to score"):
        drawn(Distinguishability(), torch.randn(1, 1, 2, 4))
    with pytest.raises(
        DataError, match="of 3 samples it has 1 to learn from and 2 to score"
    ):  # at set-up already
        Distinguishability(seed=seed).check(
            [*(question("test", n) for n in range(3)), Sample(id="text only")]
        )


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_map_has_a_point_per_layer_set_and_sample_and_keeps_clusters_apart(method: Any) -> None:
    torch.manual_seed(SEED)
    means = torch.randn(12, 2, 2, 5) + torch.tensor([20.0, -20.0])[:, None]

    result = drawn(TokenMap(method=method), means)

    assert result.axes == ("layer", "tokens", "sample", "coordinate")
    assert result.values.shape == (2, 2, 12, 2)
    again = drawn(TokenMap(method=method), means)
    np.testing.assert_array_equal(again.values, result.values)
    for one, other in result.values:
        between = np.linalg.norm(one.mean(0) - other.mean(0))
        assert between > 2 * max(
            np.linalg.norm(side - side.mean(0), axis=1).mean() for side in (one, other)
        )
    if method == "pca":
        names = sorted(found(means).kept)
        order = [int(name.split('"')[3][1:]) for name in names]
        points = torch.cat([means[order, 1, k] for k in (0, 1)]).numpy()
        expected = PCA(n_components=2, random_state=0).fit_transform(points)
        np.testing.assert_allclose(
            np.concatenate(list(result.values[1])), expected, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Distinguishability(samples=1), "samples=1"),
        (lambda: TokenMap(layers=(2, 2)), r"layers=\(2, 2\)"),
        (lambda: TokenMap(method="umap"), "it can be 'tsne' or 'pca'"),  # type: ignore[arg-type]
    ],
)
def test_what_can_not_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_layer_that_the_model_has_not_is_refused(tiny_llava: str) -> None:
    backbone: Backbone = make_backbone(tiny_llava)

    with pytest.raises(
        ConfigError, match=f"token_map.layers has 7; the model has states 0 to {LAYERS}"
    ):
        TokenMap(layers=(7,)).update(backbone, batches(tiny_llava, 6)[0])
