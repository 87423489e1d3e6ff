"""The analysis of pairs: which count, what their rows say, and what their numbers are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_mllm.analysis import (
    ActivationPatching,
    Bootstrap,
    Patch,
    PatchSource,
    Window,
    patching,
)
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import MLLMDataModule
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Box, Sample, Turn
from tests.support.command_line import picture
from tests.support.decoders import count_hooks
from tests.support.questions import WRONG, load, tokenizer

DEPTH = 2  # of the tiny checkpoint
ANSWERS = ("red", "blue", "green", "green", "one", "two", "no", "no")  # the last pair is alike
OPTIONS: dict[str, Any] = {
    "patches": ["image object @ residual", "image random @ residual", "last @ head[1.0]"],
    "bootstrap": Bootstrap(resamples=20),
}


class Pairs(MLLMDataModule):
    """Four pairs: of the second one's clean answer is wrong, of the last the answers are equal."""

    def load(self, split: str) -> list[Sample]:
        return [sample(number) for number in range(8)]


def sample(number: int) -> Sample:
    return Sample(
        id=f"test-{number}",
        images=[picture(number, (24, 20))],
        kind=f"ask/{number // 4}",
        conversation=[Turn("user", "Is it?", images=1), Turn("assistant", ANSWERS[number])],
        boxes=[Box(2, 2, 9, 9)],
        picture=f"picture-{number // 2}",
        partner=None if number % 2 else f"test-{number + 1}",
    )


@cache
def batches(checkpoint: str, size: int = 8) -> list[MultimodalBatch]:
    return list(Pairs(checkpoint=checkpoint, eval_batch_size=size).plain_dataloader("test"))


@pytest.fixture
def backbone(tiny_llava: str, examined: None) -> Backbone:
    return load(tiny_llava)


def run(
    backbone: Backbone,
    checkpoint: str,
    parts: Sequence[MultimodalBatch],
    folder: Path | None = None,
    **options: Any,
) -> ActivationPatching:
    analysis = ActivationPatching(**{**OPTIONS, **options})
    analysis.prepare(tokenizer(checkpoint), folder)
    for batch in parts:
        analysis.update(backbone, batch)
    analysis.settle()
    return analysis


def test_pairs_of_right_answers_count_and_the_others_are_counted(
    backbone: Backbone, tiny_llava: str
) -> None:
    assert WRONG[0] == "test-2"
    analysis = run(backbone, tiny_llava, batches(tiny_llava))
    table, result = analysis.rows.table(), analysis.compute()

    assert set(table["sample_id"][table["measured"]]) == {"test-0", "test-4"}
    assert (table["sample_id"] == "test-0").sum() == 2 * (2 * DEPTH + 1)
    assert result.n_samples == 2
    found = result.settings["found"]
    assert found["left_out"] == {"same first token": 1, "wrong answer": 1}
    assert found["pairs"] == {"ask/0": {"asked": 2, "kept": 1}, "ask/1": {"asked": 2, "kept": 1}}
    every = run(backbone, tiny_llava, batches(tiny_llava), correct_only=False)
    assert every.compute().settings["found"]["left_out"] == {"same first token": 2}
    assert json.loads(json.dumps(result.settings))


def test_a_row_is_what_patching_by_hand_gives(backbone: Backbone, tiny_llava: str) -> None:
    (batch,) = batches(tiny_llava)
    clean, corrupted = batch.take([0]), batch.take([1])
    table = run(backbone, tiny_llava, [batch]).rows.table()

    logits = {}
    with torch.no_grad():
        for name, own in (("clean", clean), ("corrupted", corrupted)):
            logits[name] = backbone.model(**own.prompts().model_inputs()).logits[0, -1]
        source, patch = PatchSource.of(backbone, clean), Patch.parse("image object @ residual")
        with patching(backbone, corrupted.prompts(), source, patch, Window(1, 1, 2)):
            patched = backbone.model(**corrupted.prompts().model_inputs()).logits[0, -1]

    forms = [each.answers[0].true for each in (clean, corrupted)]  # type: ignore[union-attr]
    said = [int(logits[name].argmax()) for name in ("clean", "corrupted")]
    firsts = [{own.lower[0], own.capitalised[0]} for own in forms]
    a, b = (
        token if token in own else form.lower[0]
        for token, own, form in zip(said, firsts, forms, strict=True)
    )
    (row,) = np.flatnonzero(
        (table["sample_id"] == "test-0")
        & (table["patch"] == str(patch))
        & (table["start"] == 1)
        & (table["direction"] == "denoising")
    )
    for column, own in (
        ("d_clean", logits["clean"]),
        ("d_corrupted", logits["corrupted"]),
        ("d_patched", patched),
    ):
        assert table[column][row] == pytest.approx(float(own[a] - own[b]), abs=1e-4)
    change = patched.log_softmax(-1)[a] - logits["corrupted"].log_softmax(-1)[a]
    assert table["logprob_change"][row] == pytest.approx(float(change), abs=1e-4)
    assert table["partner"][row] == "test-1"
    assert table["size"][row] == int(clean.spans[next(iter(patch.positions.segments))].sum())  # type: ignore[union-attr]


def test_shares_are_ratios_of_means_both_ways(backbone: Backbone, tiny_llava: str) -> None:
    analysis = run(backbone, tiny_llava, batches(tiny_llava), attribution=True)
    table, result = analysis.rows.table(), analysis.compute()

    for direction, sign, base in (
        ("denoising", 1, "d_corrupted"),
        ("noising", -1, "d_clean"),
    ):
        own = (table["patch"] == "image object @ residual") & (table["start"] == 0)
        own &= table["direction"] == direction
        effect = sign * (table["d_patched"] - table[base])[own]
        whole = (table["d_clean"] - table["d_corrupted"])[own]
        estimate = sign * table["estimate"][own]
        at = {"kind": "all", "patch": "image object @ residual", "layers": "0"}
        found = result.at(**at, direction=direction, statistic="value")
        numbers = dict(zip(result.coords["measure"], found.tolist(), strict=True))
        assert numbers["share"] == pytest.approx(effect.mean() / whole.mean())
        assert numbers["logit_change"] == pytest.approx(effect.mean())
        assert numbers["flip_rate"] == table["flipped"][own].mean()
        assert numbers["estimated_share"] == pytest.approx(estimate.mean() / whole.mean())
        error = np.abs(estimate - effect).mean() / whole.mean()
        assert numbers["estimate_error"] == pytest.approx(error)
        expected = np.corrcoef(estimate, effect)[0, 1]
        assert numbers["estimate_correlation"] == pytest.approx(expected)
    contrast = result.at(
        kind="all", patch="image object @ residual minus image random @ residual", measure="share"
    )
    ours, theirs = (
        result.at(kind="all", patch=f"image {each} @ residual", measure="share", statistic="value")
        for each in ("object", "random")
    )
    fair = np.isfinite(contrast[..., 0])
    assert fair.any()
    np.testing.assert_allclose(contrast[..., 0][fair], (ours - theirs)[fair])
    assert result.coords["layers"] == ("0", "1")
    assert [plot.name for plot in result.plots] == ["restored", "lost"]
    assert len(result.main_numbers().rows) == 4


def test_an_estimate_of_a_small_change_is_its_effect(backbone: Backbone, tiny_llava: str) -> None:
    (batch,) = batches(tiny_llava)
    nearly = []
    for index, image in enumerate(batch.images):
        pixels = batch.images[index - index % 2]["pixel_values"]
        nearly.append({**image, "pixel_values": pixels * (1 + 1e-3 * (index % 2))})
    backbone = load(tiny_llava, torch.float64)

    table = run(
        backbone, tiny_llava, [replace(batch, images=tuple(nearly))], attribution=True
    ).rows.table()

    base = np.where(table["direction"] == "noising", table["d_clean"], table["d_corrupted"])
    effect, own = table["d_patched"] - base, table["measured"] & (table["size"] > 0)
    assert np.abs(effect[own]).max() > 1e-5
    np.testing.assert_allclose(table["estimate"][own], effect[own], rtol=0.05, atol=1e-6)


def test_neither_batches_nor_the_place_of_a_partner_matter(
    backbone: Backbone, tiny_llava: str
) -> None:
    whole = run(backbone, tiny_llava, batches(tiny_llava)).compute()
    (batch,) = batches(tiny_llava)
    apart = [batch.take([1, 2, 6]), batch.take([3, 4]), batch.take([0, 5, 7])]

    for parts in (batches(tiny_llava, 2), batches(tiny_llava, 1), apart, [batch, batch]):
        found = run(backbone, tiny_llava, parts).compute()
        assert found.coords == whole.coords
        np.testing.assert_allclose(found.values, whole.values, rtol=1e-3, atol=1e-3)


def test_what_was_stopped_goes_on_and_ends_as_if_it_had_not(
    backbone: Backbone, tiny_llava: str, tmp_path: Path
) -> None:
    parts = batches(tiny_llava, 2)
    run(backbone, tiny_llava, parts, tmp_path / "whole").merge()
    run(backbone, tiny_llava, parts[:2], tmp_path / "stopped")

    run(backbone, tiny_llava, parts, tmp_path / "stopped").merge()

    texts = [(tmp_path / name / "rows.csv").read_text() for name in ("whole", "stopped")]
    assert texts[0] == texts[1]


def test_the_model_is_left_as_it_was(backbone: Backbone, tiny_llava: str) -> None:
    (batch,) = batches(tiny_llava)
    with torch.inference_mode():  # as within Lightning's predict loop
        before = backbone.model(**batch.model_inputs()).logits
        hooks = count_hooks(backbone)  # transformers has some of its own
        run(backbone, tiny_llava, [batch], attribution=True)
        after = backbone.model(**batch.model_inputs()).logits

    assert torch.equal(before, after)
    assert count_hooks(backbone) == hooks
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


def test_data_without_pairs_are_refused_before_the_first_batch(caplog: Any) -> None:
    samples = [sample(number) for number in range(4)]

    def refuse(changed: list[Sample], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            ActivationPatching(**OPTIONS).check(changed)

    refuse([replace(each, partner=None) for each in samples], "none of the 4 samples names a part")
    refuse([samples[0]], "names 'test-1' as its partner, which is not among the 1")
    refuse([samples[0], replace(samples[1], partner="test-0")], "Let only one sample of a pair")
    refuse([samples[0], samples[1], replace(samples[2], partner="test-1")], "both name 'test-1'")
    refuse([samples[0], replace(samples[1], kind=None)], "'test-1' has no kind")
    ActivationPatching(**OPTIONS).check([*samples[:2], replace(samples[3], kind=None)])
    assert "1 of 3 samples are in no pair" in caplog.text


def test_samples_whose_partner_never_comes_are_named(backbone: Backbone, tiny_llava: str) -> None:
    (batch,) = batches(tiny_llava)

    with pytest.raises(ConfigError, match="partners of 1 samples, of 'test-4' for one, did not"):
        run(backbone, tiny_llava, [batch.take([0, 1, 4])])


def test_pairs_of_other_numbers_of_tokens_are_refused(backbone: Backbone, tiny_llava: str) -> None:
    class Longer(Pairs):
        def load(self, split: str) -> list[Sample]:
            first, second = sample(0), sample(1)
            asked = Turn("user", "Is it there at all?", images=1)
            return [first, replace(second, conversation=[asked, second.conversation[1]])]

    parts = list(Longer(checkpoint=tiny_llava).plain_dataloader("test"))

    with pytest.raises(DataError, match=r"Samples 'test-0' and 'test-1' .* tokens, and differ"):
        run(backbone, tiny_llava, parts)


def test_patches_and_contrasts_that_can_not_be_are_refused() -> None:
    for options, message in (
        ({"patches": []}, "needs patches, each once; found none"),
        ({"patches": ["last @ ffn", "last@ffn"]}, "each once; found last @ ffn, last @ ffn"),
        ({"contrasts": [("last @ ffn", "image @ ffn")]}, "'image @ ffn', which is not among"),
    ):
        with pytest.raises(ConfigError, match=message):
            ActivationPatching(**options)


def test_a_contrast_without_a_common_window_is_refused(backbone: Backbone) -> None:
    heads = ["last @ head[0.0]", "last @ head[1.0]"]
    analysis = ActivationPatching(patches=heads, contrasts=[(heads[0], heads[1])])

    with pytest.raises(ConfigError, match="compares nothing: no window has both"):
        analysis.check_model(backbone)


def test_pairs_that_share_a_picture_are_drawn_together(backbone: Backbone, tiny_llava: str) -> None:
    (batch,) = batches(tiny_llava)
    chained = replace(batch, pictures=("a", "b", "c", "d", "b", "e", "f", "g"))

    result = run(backbone, tiny_llava, [chained]).compute()

    assert result.n_samples == 2
    assert result.settings["found"]["pictures"]["all"] == 1
