"""Calibration against Wanda by hand: each sample alone, without padding, anew for each matrix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mllm.analysis.subnetwork.calibration import Calibration, calibrate
from lightning_mllm.analysis.subnetwork.calibration_options import CalibrationOptions
from lightning_mllm.analysis.subnetwork.matrices import Matrix, matrices
from lightning_mllm.analysis.subnetwork.pruning import Pruning
from lightning_mllm.errors import CheckpointError, ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Sample, Segment, Turn
from tests.support.decoders import (
    collate,
    count_hooks,
    last_logits,
    make_backbone,
    make_batch,
    question,
)
from tests.support.feature_samples import SIZES, picture
from tests.support.wanda_by_hand import by_hand, widen

OPTIONS = [
    CalibrationOptions("perceptual", "own"),
    CalibrationOptions("perceptual", "full"),
    CalibrationOptions("textual", "own"),
    CalibrationOptions("textual", "full"),
    CalibrationOptions("both", "own"),
    CalibrationOptions("textual", before_image=False, answers=False),
    CalibrationOptions("both", "own", sequential=False),
    CalibrationOptions("textual", "own", sequential=False),
]
NUMBERS = (0, 1, 2)


@pytest.fixture(scope="module")
def backbone(tiny_llava: str) -> Backbone:
    return make_backbone(tiny_llava)


def close(found: Calibration, expected: Calibration) -> None:
    assert (found.sample_ids, found.tokens) == (expected.sample_ids, expected.tokens)
    close_squares(found.squares, expected.squares)


def close_squares(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for matrix in found:
        torch.testing.assert_close(
            found[matrix], expected[matrix], rtol=1e-9, atol=1e-12, msg=str(matrix)
        )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_masks_are_those_of_wanda_by_hand(
    backbone: Backbone, tiny_llava: str, options: CalibrationOptions
) -> None:
    batch = make_batch(tiny_llava, numbers=NUMBERS)

    found = calibrate(backbone, [batch], Pruning(sparsity=0.4), options)

    squares, kept = by_hand(backbone, batch, options, 0.4)
    close_squares(found.squares, squares)
    subnetwork = found.subnetwork(backbone)
    assert set(subnetwork.bits) == set(kept)
    for matrix, mask in kept.items():
        assert torch.equal(subnetwork.kept(matrix), mask), matrix


@pytest.mark.parametrize(
    ("decoder", "options"), [("mistral", {"sliding_window": 5}), ("qwen2", {})]
)
@pytest.mark.parametrize("tokens", ["perceptual", "textual"])
def test_the_other_decoders_are_calibrated_alike(
    tiny_llava: str, decoder: Any, options: dict[str, Any], tokens: Any
) -> None:
    backbone, counting = (
        make_backbone(tiny_llava, decoder=decoder, layers=2, **options),
        CalibrationOptions(tokens),
    )
    batch = make_batch(tiny_llava, numbers=NUMBERS)

    found = calibrate(backbone, [batch], Pruning(sparsity=0.5), counting)

    close_squares(found.squares, by_hand(backbone, batch, counting, 0.5)[0])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_neither_padding_nor_the_composition_of_batches_matters(
    backbone: Backbone, tiny_llava: str, options: CalibrationOptions
) -> None:
    """The released code counts padding, and lets tokens attend to it (bug A7 of its list)."""
    whole = calibrate(backbone, [make_batch(tiny_llava, numbers=NUMBERS)], options=options)

    for parts in (
        [make_batch(tiny_llava, "right", NUMBERS)],
        [widen(make_batch(tiny_llava, numbers=NUMBERS), 40, 7)],
        [widen(make_batch(tiny_llava, "right", NUMBERS), 3, 100)],
        [make_batch(tiny_llava, numbers=(number,)) for number in NUMBERS],
        [make_batch(tiny_llava, numbers=(0, 1)), widen(make_batch(tiny_llava, numbers=(2,)), 0, 5)],
    ):
        found = calibrate(backbone, parts, options=options)
        close(found, whole)
        assert found.subnetwork(backbone).digest == whole.subnetwork(backbone).digest


def test_tiles_are_perceptual_tokens(tiny_llava_next: str) -> None:
    backbone, options = make_backbone(tiny_llava_next, layers=2), CalibrationOptions("perceptual")
    batch = make_batch(tiny_llava_next, numbers=NUMBERS)

    found = calibrate(backbone, [batch], options=options)

    close_squares(found.squares, by_hand(backbone, batch, options, 0.5)[0])


@pytest.mark.parametrize(
    "options",
    [
        CalibrationOptions("perceptual"),
        CalibrationOptions("textual"),
        CalibrationOptions("both", "full"),
    ],
    ids=str,
)
def test_samples_can_have_several_images_or_none(
    tiny_llava: str, options: CalibrationOptions
) -> None:
    backbone = make_backbone(tiny_llava, layers=2)
    answer = Turn("assistant", "no")
    several = Sample(
        id="two",
        images=[picture(1, SIZES[0]), picture(2, SIZES[1])],
        conversation=[Turn("user", "Are they alike?", images=2), answer],
    )
    none = Sample(id="talk", conversation=[Turn("user", "Is it?"), answer])
    batch = collate(tiny_llava, [several, none, question(2)])

    found = calibrate(backbone, [batch], options=options)

    close_squares(found.squares, by_hand(backbone, batch, options, 0.5)[0])


def test_an_image_at_the_very_start_is_not_what_text_attends_to_first(tiny_llava: str) -> None:
    batch = make_batch(tiny_llava)
    start = batch.spans[Segment.IMAGE].int().argmax(1)
    cut = [batch.take([row]) for row in range(len(batch))]
    at = torch.arange(batch.input_ids.shape[1])
    without = replace(
        cut[0], attention_mask=cut[0].attention_mask * (at >= start[0])
    )  # nothing before the image

    shown, counted = CalibrationOptions("textual").cut(without)

    assert bool(counted[0, 0])
    assert not shown.spans[Segment.IMAGE].any()


def test_what_is_not_seen_costs_nothing(tiny_llava: str) -> None:
    batch = make_batch(tiny_llava)

    images, text = (CalibrationOptions(tokens).cut(batch) for tokens in ("perceptual", "textual"))

    assert images[0].input_ids.shape[1] == int(batch.spans[Segment.IMAGE].sum(1).max()) + 1
    assert not text[0].images
    assert torch.equal(text[1].sum(1), CalibrationOptions("textual").mark_counted(batch).sum(1))


def test_weights_that_are_trained_are_pruned_under_autocast_too(tiny_llava: str) -> None:
    backbone, batch = (
        make_backbone(tiny_llava, dtype=torch.float32, layers=2),
        make_batch(tiny_llava),
    )

    def calibrated(trained: bool) -> Calibration:
        backbone.model.requires_grad_(trained)
        with torch.autocast("cpu", torch.bfloat16):
            return calibrate(backbone, [batch])

    close(calibrated(True), calibrated(False))


def test_every_sample_of_a_batch_counts(backbone: Backbone, tiny_llava: str) -> None:
    """The released code takes the first one only (bug A7 of its list)."""
    options = CalibrationOptions(sequential=False)
    parts = [
        calibrate(backbone, [make_batch(tiny_llava, numbers=(number,))], options=options)
        for number in NUMBERS
    ]

    whole = calibrate(backbone, [make_batch(tiny_llava, numbers=NUMBERS)], options=options)

    assert whole.sample_ids == ("s0", "s1", "s2")
    assert whole.tokens == sum(part.tokens for part in parts)
    sums = {matrix: sum(part.squares[matrix] for part in parts) for matrix in whole.squares}
    close_squares(whole.squares, sums)


def test_modalities_are_apart_and_add_up(backbone: Backbone, tiny_llava: str) -> None:
    batch = make_batch(tiny_llava, numbers=NUMBERS)
    seen, read, both = (
        calibrate(backbone, [batch], options=CalibrationOptions(tokens, "full", False))
        for tokens in ("perceptual", "textual", "both")
    )

    assert seen.tokens + read.tokens == both.tokens == int(batch.attention_mask.sum())
    close_squares({m: seen.squares[m] + read.squares[m] for m in both.squares}, both.squares)


def test_later_blocks_see_what_pruned_ones_pass_on(backbone: Backbone, tiny_llava: str) -> None:
    batch = make_batch(tiny_llava)
    pruned, whole = (
        calibrate(backbone, [batch], options=CalibrationOptions(sequential=each))
        for each in (True, False)
    )

    for matrix in whole.squares:
        alike = torch.allclose(pruned.squares[matrix], whole.squares[matrix], rtol=1e-9)
        assert alike == (matrix.layer == 0)


def test_pruning_nothing_block_by_block_is_one_pass(backbone: Backbone, tiny_llava: str) -> None:
    batch = make_batch(tiny_llava)

    pruned, whole = (
        calibrate(backbone, [batch], Pruning(sparsity=0), CalibrationOptions(sequential=s))
        for s in (True, False)
    )

    close(pruned, whole)


def test_masks_from_a_file_are_those_made_directly(
    backbone: Backbone, tiny_llava: str, tmp_path: Path
) -> None:
    direct = calibrate(
        backbone,
        [make_batch(tiny_llava)],
        Pruning("activation", "2:4"),
        CalibrationOptions("perceptual"),
        task="choose/attr",
    )
    direct.save(tmp_path / "vectors.safetensors")

    again = Calibration.load(tmp_path / "vectors.safetensors")

    assert (again.task, again.pruning, again.options) == (
        direct.task,
        direct.pruning,
        direct.options,
    )
    assert (again.sample_ids, again.tokens, again.weights) == (
        direct.sample_ids,
        direct.tokens,
        direct.weights,
    )
    assert all(
        torch.equal(again.squares[matrix], direct.squares[matrix]) for matrix in direct.squares
    )
    assert (again.digest, again.subnetwork(backbone).digest) == (
        direct.digest,
        direct.subnetwork(backbone).digest,
    )
    vectors = sum(module.in_features for module in matrices(backbone).values())
    assert (tmp_path / "vectors.safetensors").stat().st_size < 8 * vectors + 8192


def test_the_model_is_left_as_it_was(backbone: Backbone, tiny_llava: str) -> None:
    batch = make_batch(tiny_llava)
    before, hooks = last_logits(backbone, batch), count_hooks(backbone)

    calibrate(backbone, [batch])

    assert torch.equal(last_logits(backbone, batch), before)
    assert count_hooks(backbone) == hooks


def test_other_weights_are_refused(tiny_llava: str) -> None:
    backbone = make_backbone(tiny_llava, layers=2)
    found = calibrate(backbone, [make_batch(tiny_llava)], task="captions")
    with torch.no_grad():
        next(iter(matrices(backbone).values())).weight[0, 0] += 1

    with pytest.raises(
        CheckpointError, match=r"calibration of 'captions' was made with other weights"
    ):
        found.subnetwork(backbone)


def test_samples_without_such_tokens_are_refused(backbone: Backbone, tiny_llava: str) -> None:
    talk = Sample(id="a", conversation=[Turn("user", "Is it?"), Turn("assistant", "no")])

    with pytest.raises(DataError, match=r"None of the 1 samples of 'chat' has perceptual tokens"):
        calibrate(
            backbone,
            [collate(tiny_llava, [talk])],
            options=CalibrationOptions("perceptual"),
            task="chat",
        )


def test_activations_that_overflow_are_refused(tiny_llava: str) -> None:
    backbone = make_backbone(tiny_llava, layers=2)
    with torch.no_grad():
        matrices(backbone)[Matrix(0, "mlp.up_proj")].weight.fill_(float("inf"))

    with pytest.raises(DataError, match=r"The inputs of 0\.mlp\.down_proj are not finite"):
        calibrate(backbone, [make_batch(tiny_llava)])


@pytest.mark.parametrize("score", ["magnitude", "random"])
def test_scores_without_activations_need_no_calibration(backbone: Backbone, score: Any) -> None:
    with pytest.raises(ConfigError, match=r"looks at no activations\. Use SubNetwork\.by_score"):
        calibrate(backbone, [], Pruning(score))


@pytest.mark.parametrize("options", [{"tokens": "visual"}, {"context": "half"}])
def test_what_can_not_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"it can be (perceptual, textual, both|own, full)"):
        CalibrationOptions(**options)
