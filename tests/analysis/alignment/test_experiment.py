"""Every measure of alignment against loops over samples and tokens, in float64."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_mllm.alignment_names import MODES, TOKEN_MODES, VECTOR_MODES
from lightning_mllm.analysis.alignment.experiment import Alignment, _Noise
from lightning_mllm.analysis.alignment.kinds import rows_of_kinds
from lightning_mllm.analysis.alignment.summary import AlignmentScore, alignment_score
from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.analysis.forward.observe import ObservedState
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.statistics.jackknife import jackknife_group
from lightning_mllm.types import Segment
from tests.support.alignment_by_hand import (
    Sample,
    Tokens,
    align,
    curve,
    over_pairs,
    residuals,
    samples_by_hand,
)
from tests.support.decoders import LAYERS, make_backbone
from tests.support.questions import batches, question, tokenizer
from tests.support.streamed_contract import StreamedContract


class TestAlignment(StreamedContract):
    one_process = {"pair_budget": 0}  # noqa: RUF012 - pairs are within a process

    def make(self, **options: Any) -> Alignment:
        return Alignment(**{"gaps": (1, 3), "groups": 4, **options})


class TestAlignmentOfEverything(StreamedContract):
    one_process = {"pair_budget": 0}  # noqa: RUF012

    def make(self, **options: Any) -> Alignment:
        everything = {
            "states": list(ObservedState),
            "deviation": True,
            "noise": True,
            "between_kinds": True,
            "pair_budget": 3,
        }
        return Alignment(**{**everything, "groups": 4, **options})


@pytest.fixture
def backbone(tiny_llava: str) -> Backbone:
    return make_backbone(tiny_llava)


@pytest.fixture
def samples(backbone: Backbone, tiny_llava: str) -> list[Sample]:
    return samples_by_hand(backbone, batches(tiny_llava, 6))


def test_all_pairs_are_those_of_a_loop_over_all_pairs(
    backbone: Backbone, tiny_llava: str, samples: list[Sample]
) -> None:
    result = align(backbone, batches(tiny_llava, 4), deviation=True)

    for layer in range(LAYERS + 1):
        perceptual, textual = ([sample[layer][k] for sample in samples] for k in (0, 1))
        at_input = [sample[0][0] for sample in samples]
        for mode in MODES:
            same = over_pairs(perceptual, textual, mode, own=True)
            from_input = over_pairs(at_input, textual, mode, own=True)
            assert curve(result, f"ima_same_layer {mode}")[layer] == pytest.approx(
                np.mean(same), abs=1e-12
            )
            assert curve(result, f"ima_input {mode}")[layer] == pytest.approx(
                np.mean(from_input), abs=1e-12
            )
            for name, tokens in (("perceptual", perceptual), ("textual", textual)):
                within = over_pairs(tokens, tokens, mode, own=False)
                assert curve(result, f"{name} {mode}")[layer] == pytest.approx(
                    np.mean(within), abs=1e-12
                )
                if mode in VECTOR_MODES:
                    assert curve(result, f"{name} {mode} deviation")[layer] == pytest.approx(
                        np.std(within)
                    )
            if mode in VECTOR_MODES:
                assert curve(result, f"ima_same_layer {mode} deviation")[layer] == pytest.approx(
                    np.std(same)
                )
                assert curve(result, f"ima_input {mode} deviation")[layer] == pytest.approx(
                    np.std(from_input)
                )


def test_halves_are_compared_across_only(
    backbone: Backbone, tiny_llava: str, samples: list[Sample]
) -> None:
    result = align(backbone, batches(tiny_llava, 6), groups=2)

    ids = batches(tiny_llava, 6)[0].sample_ids
    first = [jackknife_group(name, 0, 2) == 0 for name in ids]
    assert 0 < sum(first) < len(ids)
    for name, k in (("perceptual", 0), ("textual", 1)):
        for mode in VECTOR_MODES:
            sides = [
                [s[2][k] for s, own in zip(samples, first, strict=True) if own is half]
                for half in (True, False)
            ]
            expected = np.mean(over_pairs(sides[0], sides[1], mode, own=True))
            assert curve(result, f"{name} halves {mode}")[2] == pytest.approx(expected, abs=1e-12)


def test_kinds_are_compared_with_themselves_and_with_each_other(
    backbone: Backbone, tiny_llava: str, samples: list[Sample]
) -> None:
    (batch,) = batches(tiny_llava, 6)
    of_kind = {
        kind: [k for k, each in enumerate(batch.kinds) if each == kind] for kind in set(batch.kinds)
    }
    choose, logical = of_kind["choose/attr"], of_kind["logical/obj"]

    result = align(backbone, batches(tiny_llava, 4), between_kinds=True, groups=1000)

    for layer, mode in product(range(LAYERS + 1), VECTOR_MODES):
        for k, name in enumerate(("perceptual", "textual")):
            tokens = [sample[layer][k] for sample in samples]
            mine, theirs = ([tokens[row] for row in rows] for rows in (choose, logical))
            between = over_pairs(mine, theirs, mode, own=True)
            found = curve(result, f"{name} {mode} of choose/attr and logical/obj")[layer]
            assert found == pytest.approx(np.mean(between), abs=1e-12)
            within = over_pairs(mine, mine, mode, own=False)
            assert curve(result, f"{name} {mode} of choose/attr")[layer] == pytest.approx(
                np.mean(within), abs=1e-12
            )
        textual = [samples[row][layer][1] for row in logical]
        for reading, at in (("ima_same_layer", layer), ("ima_input", 0)):
            across = over_pairs([samples[row][at][0] for row in logical], textual, mode, own=True)
            found = curve(result, f"{reading} {mode} of logical/obj")[layer]
            assert found == pytest.approx(np.mean(across), abs=1e-12)
    numbers = {
        measure: result.at(state="residual", tokens="all", measure=measure, layer=1)
        for measure in (
            "textual mean of choose/attr and logical/obj",
            "textual mean of choose/attr",
        )
    }
    assert [each[3] for each in numbers.values()] == [6, 4]
    assert all(low < value < high for value, low, high, _ in numbers.values())
    drawn = next(plot for plot in result.plots if plot.name == "textual_kinds")
    assert set(drawn.shown.values()) == {
        "choose/attr",
        "logical/obj",
        "choose/attr and logical/obj",
    }


def test_parts_of_names_tell_kinds_apart_and_one_kind_is_refused_at_set_up() -> None:
    asked = [question("test", number) for number in range(6)]

    Alignment(between_kinds=True, kind_depth=1).check(asked)

    with pytest.raises(
        ConfigError, match=r"alignment\.between_kinds .* those with images are of choose/attr\."
    ):
        Alignment(between_kinds=True).check(asked[:2])
    with pytest.raises(ConfigError, match="are of no kind"):
        Alignment(between_kinds=True).check([replace(each, kind=None) for each in asked])
    assert rows_of_kinds(("a/b", None, "a/c", "all"), 1) == {"a": [0, 2], "'all'": [3]}


def test_noise_takes_the_place_of_the_image_and_depends_on_the_sample_only(
    backbone: Backbone, tiny_llava: str, samples: list[Sample]
) -> None:
    plain = align(backbone, batches(tiny_llava, 4))
    result = align(backbone, batches(tiny_llava, 4), noise=True)
    alone = align(backbone, batches(tiny_llava, 1), noise=True)

    for mode in VECTOR_MODES:
        for pair in ("noise-textual", "noise-perceptual"):
            found = curve(result, f"{pair} {mode}")
            np.testing.assert_allclose(curve(alone, f"{pair} {mode}"), found, atol=1e-12)
            assert np.isfinite(found).all()
        assert curve(result, f"noise-textual {mode}")[0] != pytest.approx(
            curve(result, f"ima_input {mode}")[0], abs=1e-3
        )
        np.testing.assert_array_equal(
            curve(result, f"ima_input {mode}"), curve(plain, f"ima_input {mode}")
        )
    noisy = noise_by_hand(backbone, batches(tiny_llava, 6)[0])
    at_input = np.stack([sample[0] for sample in noisy])
    assert 0 <= at_input.min() < 0.05
    assert 0.95 < at_input.max() < 1
    for layer in range(LAYERS + 1):
        for k, pair in enumerate(("noise-perceptual", "noise-textual")):
            expected = over_pairs(
                [each[layer] for each in noisy],
                [each[layer][k] for each in samples],
                "mean",
                own=True,
            )
            assert curve(result, f"{pair} mean")[layer] == pytest.approx(
                np.mean(expected), abs=1e-12
            )


def noise_by_hand(backbone: Backbone, batch: MultimodalBatch) -> list[list[Tokens]]:
    """Sample, layer -> the states of the noise that takes the place of its image."""
    layers: Any = backbone.decoder.layers
    image = batch.spans[Segment.IMAGE]

    def exchange(_: Any, arguments: Any) -> Any:
        return (
            _Noise(batch.sample_ids, image, seed=0).replace_tokens(arguments[0]),
            *arguments[1:],
        )

    with layers[0].register_forward_pre_hook(exchange):
        first: list[torch.Tensor] = []
        with layers[0].register_forward_pre_hook(lambda _, arguments: first.append(arguments[0])):
            states = residuals(backbone, batch)
    every = [first[0], *states[1:]]
    return [[each[row][own].double().numpy() for each in every] for row, own in enumerate(image)]


def test_scores_are_means_over_all_layers_but_the_last(backbone: Backbone, tiny_llava: str) -> None:
    result = align(backbone, batches(tiny_llava, 4))

    for reading in ("ima_input", "ima_same_layer"):
        for mode in MODES:
            for tokens in ("all", "without sinks"):
                score = alignment_score(result, reading, mode, tokens)
                assert score.value == pytest.approx(
                    curve(result, f"{reading} {mode}", tokens=tokens)[:-1].mean()
                )
                assert score.low_95 < score.value < score.high_95
                assert score.n == 6
    assert isinstance(alignment_score(result), AlignmentScore)


def test_intervals_come_from_leaving_out_each_group(
    backbone: Backbone, tiny_llava: str, samples: list[Sample]
) -> None:
    groups = 1000  # a sample in each
    result = align(backbone, batches(tiny_llava, 6), groups=groups)

    perceptual, textual = ([sample[1][k] for sample in samples] for k in (0, 1))
    without = []
    for out in range(6):
        sides = [
            [each for k, each in enumerate(side) if k != out] for side in (perceptual, textual)
        ]
        without.append(np.mean(over_pairs(sides[0], sides[1], "mean", own=True)))
    half = 2.570581835636314 * np.sqrt(5 / 6 * np.sum((np.array(without) - np.mean(without)) ** 2))
    found = result.at(state="residual", tokens="all", measure="ima_same_layer mean", layer=1)
    assert found[2] - found[0] == pytest.approx(half, rel=1e-6)
    assert found[0] - found[1] == pytest.approx(half, rel=1e-6)
    assert found[3] == 6


def test_pairs_are_of_as_many_samples_as_the_budget_allows(
    backbone: Backbone, tiny_llava: str
) -> None:
    analysis = Alignment(pair_budget=7)
    for batch in batches(tiny_llava, 1):
        analysis.update(backbone, batch)

    result = analysis.compute()

    assert len(analysis.pairs.members) == 4  # six pairs
    assert len(analysis.found.kept) == len(list(combinations(range(4), 2)))
    assert (
        result.at(state="residual", tokens="all", measure="textual max", statistic="n", layer=0)
        == 4
    )
    none = align(backbone, batches(tiny_llava, 6), pair_budget=0)
    assert not [
        name
        for name in none.coords["measure"]
        if name.startswith("textual") and name.split()[1] in TOKEN_MODES
    ]


def test_killed_pairs_are_the_same_pairs(
    backbone: Backbone, tiny_llava: str, tmp_path: Path
) -> None:
    whole = align(backbone, batches(tiny_llava, 1), pair_budget=6)
    for stop in (3, 5):
        stopped = Alignment(gaps=(1, 3), pair_budget=6, snapshot_every=1)
        stopped.prepare(tokenizer(tiny_llava), tmp_path)
        for batch in batches(tiny_llava, 1)[:stop]:
            stopped.update(backbone, batch)

    resumed = Alignment(gaps=(1, 3), pair_budget=6, snapshot_every=1)
    resumed.prepare(tokenizer(tiny_llava), tmp_path)
    for batch in batches(tiny_llava, 1):
        resumed.update(backbone, batch)
    resumed.merge()

    np.testing.assert_allclose(resumed.compute().values, whole.values, rtol=1e-12, atol=1e-12)


def test_an_unknown_score_is_refused(backbone: Backbone, tiny_llava: str) -> None:
    result = align(backbone, batches(tiny_llava, 6), pair_budget=0, sets=TokenSets(sink_ratio=None))

    with pytest.raises(
        DataError,
        match=r"no score 'ima_input max' of tokens 'all'; it has ima_input avg, ima_input mean",
    ):
        alignment_score(result, mode="max")
    with pytest.raises(DataError, match="of tokens 'without sinks'; it has none"):
        alignment_score(result, tokens="without sinks")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"states": ("SA",)}, "needs residual, of which the scores are made"),
        ({"gaps": (0,)}, r"not gaps=\[0\]"),
        ({"pair_budget": -1}, "pair_budget=-1"),
        ({"groups": 1}, "groups=1"),
    ],
)
def test_what_can_not_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Alignment(**options)
