"""Answers with others' pictures: what the collator makes of them, and what the loss says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_mllm.analysis import Bootstrap, Grounding
from lightning_mllm.analysis.grounding.pictures import draw_others
from lightning_mllm.analysis.grounding.rows import OTHERS
from lightning_mllm.analysis.grounding.splicing import (
    cut_picture,
    replace_picture,
    stack_samples,
    take_unpadded,
)
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.models.loss import answer_loss
from lightning_mllm.types import IGNORE_INDEX, Sample
from tests.conftest import FamilyBuilder
from tests.families.checkpoints import Shapes
from tests.support.decoders import count_hooks
from tests.support.questions import batches, load, question, tokenizer

FAMILIES = ("llava_next", "qwen2_vl", "idefics3", "gemma3")


def make(**options: Any) -> Grounding:
    return Grounding(**{"others": 3, "bootstrap": Bootstrap(resamples=20), **options})


def run(
    backbone: Backbone,
    checkpoint: str,
    parts: Sequence[MultimodalBatch],
    folder: Path | None = None,
    **options: Any,
) -> Grounding:
    analysis = make(**options)
    analysis.prepare(tokenizer(checkpoint), folder)
    for batch in parts:
        analysis.update(backbone, batch)
    return analysis


def log_likelihoods(backbone: Backbone, parts: Sequence[MultimodalBatch]) -> dict[str, float]:
    """Minus the loss of each sample alone, by the model's own forward on its pixels."""
    found = {}
    for batch in parts:
        for row, name in enumerate(batch.sample_ids):
            with torch.no_grad():
                found[name] = -float(answer_loss(backbone, batch.take([row])).total)
    return found


class Exchanged(Shapes):
    """The same questions, each about the picture that another one had."""

    shown: dict[int, int]

    def load(self, split: str) -> list[Sample]:
        samples = super().load(split)
        return [
            replace(each, images=samples[self.shown[number]].images)
            for number, each in enumerate(samples)
        ]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_is_minus_the_loss_of_the_sample_with_that_picture(
    tiny_family: FamilyBuilder, family: Any
) -> None:
    checkpoint = tiny_family(family)
    backbone = load(checkpoint)
    own = list(Shapes(checkpoint=checkpoint, eval_batch_size=4).plain_dataloader("test"))

    analysis = run(backbone, checkpoint, own, others=2)
    analysis.settle()
    table = analysis.rows.table()

    def of(condition: str) -> dict[str, tuple[str, float]]:
        chosen = table["condition"] == condition
        shown = zip(table["shown"][chosen], table["log_likelihood"][chosen], strict=True)
        return dict(zip(table["sample_id"][chosen].tolist(), shown, strict=True))

    expected = log_likelihoods(backbone, own)
    assert {k: v for k, (_, v) in of("own").items()} == pytest.approx(expected, abs=2e-4)
    exchanged = Exchanged(checkpoint=checkpoint, eval_batch_size=4)
    exchanged.shown = {int(k[-1]): int(shown[-1]) for k, (shown, _) in of("1").items()}
    assert all(k != shown for k, (shown, _) in of("1").items())
    parts = list(exchanged.plain_dataloader("test"))
    assert {k: v for k, (_, v) in of("1").items()} == pytest.approx(
        log_likelihoods(backbone, parts), abs=2e-4
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_spliced_tokens_are_those_that_the_collator_writes(
    tiny_family: FamilyBuilder, family: Any
) -> None:
    checkpoint = tiny_family(family)
    exchanged = Exchanged(checkpoint=checkpoint, eval_batch_size=6)
    exchanged.shown = {k: (k + 2) % 6 for k in range(6)}
    (own,) = Shapes(checkpoint=checkpoint, eval_batch_size=6).plain_dataloader("test")
    (expected,) = exchanged.plain_dataloader("test")

    alone = [take_unpadded(replace(own, images=()), row) for row in range(6)]
    spliced = stack_samples(
        [replace_picture(alone[k], cut_picture(alone[(k + 2) % 6])) for k in range(6)]
    )

    counts = {int(each.input_ids.shape[1]) for each in map(cut_picture, alone)}
    assert len(counts) > 1 or family == "gemma3"  # pictures have different numbers of tokens
    real = spliced.attention_mask.bool()
    assert spliced.attention_mask.sum(1).equal(expected.attention_mask.sum(1))
    for row in range(6):
        there = expected.attention_mask[row].bool()
        for name in ("input_ids", "labels"):
            ours, theirs = getattr(spliced, name)[row], getattr(expected, name)[row]
            assert ours[real[row]].equal(theirs[there])
        ours, theirs = spliced.position_ids[..., row, :], expected.position_ids[..., row, :]
        assert ours[..., real[row]].equal(theirs[..., there])


def test_a_picture_against_itself_is_no_likelier(tiny_llava: str) -> None:
    (batch,) = batches(tiny_llava, 6)
    twins = replace(batch, images=(batch.images[0],) * 6)

    result = run(load(tiny_llava), tiny_llava, [twins]).compute()

    differences, shares, found = (
        result.at(kind="all", picture=OTHERS, among=4, measure=name, statistic="value")
        for name in ("own_likelier_by_nats", "own_likelier_percent", "own_found_percent")
    )
    assert (float(differences), float(shares), float(found)) == pytest.approx((0, 50, 25), abs=1e-6)


def test_numbers_are_means_and_shares_of_the_rows(tiny_llava: str) -> None:
    analysis = run(load(tiny_llava), tiny_llava, batches(tiny_llava))
    result, table = analysis.compute(), analysis.rows.table()

    scores = table["log_likelihood"].reshape(6, 6)  # samples; own, blind, shuffled, 1, 2, 3
    own, others = scores[:, :1], scores[:, 3:]
    found = result.at(kind="all", picture=OTHERS, among=4, statistic="value")
    assert found.tolist() == pytest.approx(
        [
            others.mean(),
            (own - others).mean(),
            100 * (own > others).mean(),
            100 * (own > others).all(axis=1).mean(),
        ]
    )
    assert result.at(kind="all", picture=OTHERS, among=4, statistic="n").tolist() == [6] * 4
    blind = result.at(kind="all", picture="blind", among=4, statistic="value")
    assert blind[1] == pytest.approx((scores[:, 0] - scores[:, 1]).mean())
    assert result.coords["kind"] == ("all", "choose/attr", "logical/obj")
    headline = result.main_numbers()
    assert headline.columns[3] == "1 of 4 (%)"
    assert [row[0] for row in headline.rows] == [
        *("another's", "blank", "own, shuffled"),
        *("another's, choose/attr", "another's, logical/obj"),
    ]


def test_a_sample_without_an_answer_is_left_out_and_is_no_tie(tiny_llava: str) -> None:
    (batch,) = batches(tiny_llava, 6)
    labels = batch.labels.clone()
    labels[0] = IGNORE_INDEX

    analysis = run(load(tiny_llava), tiny_llava, [replace(batch, labels=labels)])
    analysis.settle()
    table = analysis.rows.table()

    assert int(table["measured"].sum()) == 5 * 6
    assert table["measured"][table["sample_id"] == batch.sample_ids[0]].tolist() == [False]


def test_a_blank_picture_says_nothing_of_its_pixels(tiny_llava: str) -> None:
    (batch,) = batches(tiny_llava, 6)
    images = tuple(
        {**image, "pixel_values": image["pixel_values"].flip(-1).neg()} for image in batch.images
    )
    tables = []
    for each in (batch, replace(batch, images=images)):
        analysis = run(load(tiny_llava), tiny_llava, [each])
        analysis.settle()
        tables.append(analysis.rows.table())

    blind = tables[0]["condition"] == "blind"
    scores = [table["log_likelihood"] for table in tables]
    np.testing.assert_array_equal(scores[0][blind], scores[1][blind])
    assert (scores[0] != scores[1])[tables[0]["condition"] == "own"].all()


def test_neither_batches_nor_padding_matter(tiny_llava: str) -> None:
    backbone = load(tiny_llava)
    whole = run(backbone, tiny_llava, batches(tiny_llava, 6)).compute()

    for size, side in ((1, "right"), (4, "left")):
        parts = batches(tiny_llava, size, padding_side=side)
        found = run(backbone, tiny_llava, parts).compute()
        np.testing.assert_allclose(found.values[..., 0], whole.values[..., 0], atol=1e-4)


def test_what_was_stopped_goes_on_and_ends_as_if_it_had_not(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, parts = load(tiny_llava), batches(tiny_llava, 2)
    run(backbone, tiny_llava, parts, tmp_path / "whole").merge()
    stopped = run(backbone, tiny_llava, parts, tmp_path / "stopped")
    scored: list[Any] = []

    def score(self: Grounding, samples: Any, circle: Any) -> None:
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(samples)
        original(self, samples, circle)

    original = Grounding._score
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Grounding, "_score", score)
        stopped.settle()

    resumed = make()
    resumed.prepare(tokenizer(tiny_llava), tmp_path / "stopped")
    assert len(resumed.rows.done) == 4
    for batch in parts:
        resumed.update(backbone, batch)
    resumed.merge()
    assert (tmp_path / "stopped" / "rows.csv").read_text() == (
        tmp_path / "whole" / "rows.csv"
    ).read_text()


def test_out_of_memory_fewer_answers_are_scored_at_a_time(tiny_llava: str) -> None:
    backbone, parts = load(tiny_llava), batches(tiny_llava, 6)
    whole = run(backbone, tiny_llava, parts).compute()

    def full(module: torch.nn.Module, inputs: Any) -> None:
        if inputs[0].shape[0] > 2:
            raise torch.OutOfMemoryError("full")

    handle = decoder_layers(backbone)[-1].register_forward_pre_hook(full)
    halved = run(backbone, tiny_llava, parts).compute()
    handle.remove()

    np.testing.assert_allclose(halved.values[..., 0], whole.values[..., 0], atol=1e-4)


def test_the_model_is_left_as_it_was(tiny_llava: str) -> None:
    backbone, batch = load(tiny_llava), batches(tiny_llava, 6)[0]
    with torch.no_grad():
        before, hooks = backbone.model(**batch.model_inputs()).logits, count_hooks(backbone)
        run(backbone, tiny_llava, [batch]).compute()
        after = backbone.model(**batch.model_inputs()).logits

    assert torch.equal(before, after)
    assert count_hooks(backbone) == hooks


def test_in_the_circle_each_picture_has_as_many_others_as_it_is_one_of() -> None:
    names = [f"picture {number}" for number in range(7)]

    others = draw_others(names, 3, seed=1)

    assert others == draw_others(names[::-1], 3, seed=1) != draw_others(names, 3, seed=2)
    assert all(name not in own and len({*own}) == 3 for name, own in others.items())
    every = [other for own in others.values() for other in own]
    assert {every.count(name) for name in names} == {3}


def test_what_can_not_be_compared_is_refused() -> None:
    samples = [question("test", number) for number in range(4)]

    make().check(samples)
    several = replace(samples[0], images=[*samples[0].images] * 2)
    for few in (samples[:3], [several, *samples[1:]]):
        with pytest.raises(ConfigError, match=r"with 3 others, but .* have 3 pictures.*fewer"):
            make().check(few)
    with pytest.raises(ConfigError, match="others must be at least 1, not 0"):
        make(others=0)
