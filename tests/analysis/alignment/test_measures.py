"""What a sample measures of itself against loops over its tokens, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_mllm.alignment_names import MODES
from lightning_mllm.analysis.forward.observe import ObservedState, observe_stream
from lightning_mllm.models.backbone import Backbone
from tests.support.alignment_by_hand import (
    Sample,
    align,
    curve,
    over_pairs,
    places,
    samples_by_hand,
    similarity,
)
from tests.support.decoders import LAYERS, make_backbone
from tests.support.questions import batches


@pytest.fixture
def backbone(tiny_llava: str) -> Backbone:
    return make_backbone(tiny_llava)


@pytest.fixture
def samples(backbone: Backbone, tiny_llava: str) -> list[Sample]:
    return samples_by_hand(backbone, batches(tiny_llava, 6))


def test_paired_similarities_are_those_of_one_sample(
    backbone: Backbone, tiny_llava: str, samples: list[Sample]
) -> None:
    result = align(backbone, batches(tiny_llava, 4))

    for layer in range(LAYERS + 1):
        for mode in MODES:
            own = [similarity(*sample[layer], mode) for sample in samples]
            from_input = [similarity(sample[0][0], sample[layer][1], mode) for sample in samples]
            assert curve(result, f"paired {mode}")[layer] == pytest.approx(np.mean(own), abs=1e-12)
            assert curve(result, f"paired input {mode}")[layer] == pytest.approx(
                np.mean(from_input), abs=1e-12
            )


def test_consecutive_layers_are_compared_within_a_sample_at_the_same_position(
    backbone: Backbone, tiny_llava: str, samples: list[Sample]
) -> None:
    """The released code averages over all pairs of samples instead (bug A2 of its list)."""
    result = align(backbone, batches(tiny_llava, 4))

    reduce: dict[str, Any] = {"diag_mean": np.mean, "diag_median": np.median, "diag_max": np.max}
    for gap in (1, 3):
        for layer in range(LAYERS + 1 - gap):
            for k, name in enumerate(("perceptual", "textual")):
                pairs = [(sample[layer][k], sample[layer + gap][k]) for sample in samples]
                for mode, of in reduce.items():
                    own = [
                        of(
                            [
                                similarity(a[None], b[None], "avg")
                                for a, b in zip(*both, strict=True)
                            ]
                        )
                        for both in pairs
                    ]
                    found = curve(result, f"consecutive {gap} {name} {mode}")[layer]
                    assert found == pytest.approx(np.mean(own), abs=1e-12)
                means = np.mean([similarity(*both, "avg") for both in pairs])
                assert curve(result, f"consecutive {gap} {name} avg")[layer] == pytest.approx(
                    means, abs=1e-12
                )
        assert np.isnan(
            curve(result, f"consecutive {gap} textual diag_mean")[LAYERS + 1 - gap :]
        ).all()


def test_layers_that_do_nothing_are_like_the_next(backbone: Backbone, tiny_llava: str) -> None:
    layers: Any = backbone.decoder.layers
    for layer in layers:
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            nn.init.zeros_(last.weight)

    result = align(backbone, batches(tiny_llava, 4), states=("residual", "SA", "FC2"))

    for name in ("perceptual", "textual"):
        for mode in ("diag_mean", "diag_median", "diag_max", "avg"):
            found = curve(result, f"consecutive 1 {name} {mode}")[:-1]
            np.testing.assert_allclose(found, 1.0, rtol=1e-12)
        assert not curve(result, f"update ratio {name}", "FC2")[1:].any()


def test_norms_are_of_single_tokens(
    backbone: Backbone, tiny_llava: str, samples: list[Sample]
) -> None:
    """The released code takes the norm of all tokens together, or of their mean (bug A3)."""
    result = align(backbone, batches(tiny_llava, 4))

    for layer in range(LAYERS + 1):
        for k, name in enumerate(("perceptual", "textual")):
            norms = [np.linalg.norm(sample[layer][k], axis=1) for sample in samples]
            for statistic in ("median", "max", "min"):
                expected = np.mean([getattr(np, statistic)(each) for each in norms])
                assert curve(result, f"norm {name} {statistic}")[layer] == pytest.approx(
                    expected, rel=1e-12
                )


def test_inside_blocks_padding_counts_nowhere_and_updates_are_measured_beside_the_stream(
    backbone: Backbone, tiny_llava: str
) -> None:
    """The released code averages left padding into the textual mean of these states (bug A9)."""
    (batch,) = batches(tiny_llava, 6)
    seen: dict[tuple[ObservedState, int], Any] = {}
    observe_stream(
        backbone,
        batch,
        list(ObservedState),
        lambda s, k, values: seen.__setitem__((s, k), values.numpy()),
    )

    result = align(backbone, [batch], states=tuple(ObservedState))

    at = [places(batch, row) for row in range(len(batch))]
    assert not batch.attention_mask.all()
    for layer in range(1, LAYERS + 1):
        for state in ObservedState:
            tokens = [
                [seen[state, layer][row][own] for own in at[row]] for row in range(len(batch))
            ]
            same = np.mean(
                over_pairs([t[0] for t in tokens], [t[1] for t in tokens], "avg", own=True)
            )
            assert curve(result, "ima_same_layer avg", state)[layer] == pytest.approx(
                same, abs=1e-12
            )
            norm = np.mean([np.median(np.linalg.norm(t[1], axis=1)) for t in tokens])
            assert curve(result, "norm textual median", state)[layer] == pytest.approx(norm)
        before = seen[ObservedState.RESIDUAL, layer - 1]
        for state, stream in (
            (ObservedState.SA, before),
            (ObservedState.FC2, before + seen[ObservedState.SA, layer]),
        ):
            ratio = np.linalg.norm(seen[state, layer], axis=-1) / np.linalg.norm(stream, axis=-1)
            expected = np.mean([np.median(ratio[row][at[row][0]]) for row in range(len(batch))])
            assert curve(result, "update ratio perceptual", state)[layer] == pytest.approx(expected)
    assert np.isnan(curve(result, "paired avg", "SA")[0])


def test_what_stands_in_padding_is_never_seen(backbone: Backbone, tiny_llava: str) -> None:
    """The released reader of LLaVA's states masks padding at layer 0 only (bug A5 of its list)."""
    (batch,) = batches(tiny_llava, 6, padding_side="left")
    expected = align(backbone, [batch])
    layers: Any = backbone.decoder.layers
    real = batch.attention_mask.bool()[..., None]
    handles = [
        layer.register_forward_hook(lambda _, __, out: out.where(real, torch.nan))
        for layer in layers
    ]
    keys = [
        layer.register_forward_pre_hook(lambda _, args: (args[0].nan_to_num(0.5), *args[1:]))
        for layer in layers
    ]

    found = align(backbone, [batch])

    for handle in (*handles, *keys):
        handle.remove()
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-9, atol=1e-9)


def test_sinks_are_reported_and_left_out(
    backbone: Backbone, tiny_llava: str, samples: list[Sample]
) -> None:
    (batch,) = batches(tiny_llava, 6)
    image = [places(batch, row)[0][0] for row in range(len(batch))]

    def enlarge(_: Any, arguments: Any) -> Any:
        hidden = arguments[0].clone()
        hidden[range(len(batch)), image] *= 1000
        return (hidden, *arguments[1:])

    layers: Any = backbone.decoder.layers
    handle = layers[0].register_forward_pre_hook(enlarge)
    result = align(backbone, [batch])
    handle.remove()

    own = [(sample[0][0][1:], sample[0][1]) for sample in samples]  # without the first image token
    for mode in MODES:
        expected = np.mean(
            over_pairs([one for one, _ in own], [other for _, other in own], mode, own=True)
        )
        found = curve(result, f"ima_same_layer {mode}", tokens="without sinks")[0]
        assert found == pytest.approx(expected, abs=1e-12)
    patches = len(samples[0][0][0])
    assert curve(result, "sinks perceptual")[0] == pytest.approx(1 / patches)
    assert curve(result, "sinks textual")[0] == 0
    assert (
        curve(result, "norm perceptual max")[0]
        > 100 * curve(result, "norm perceptual max", tokens="without sinks")[0]
    )


def test_a_half_precision_model_is_measured_in_double(tiny_llava: str) -> None:
    backbone = make_backbone(tiny_llava, dtype=torch.bfloat16)

    result = align(backbone, batches(tiny_llava, 6))

    samples = samples_by_hand(backbone, batches(tiny_llava, 6))
    own = np.mean([similarity(*sample[2], "mean") for sample in samples])
    assert curve(result, "paired mean")[2] == pytest.approx(own, abs=1e-12)
