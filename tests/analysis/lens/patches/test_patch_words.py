"""What patches say is what the model's own head says, and each patch of a sample counts once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_mllm.analysis import Bank, PatchWords, build_bank, read_patch_words
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Collator, ConversationPrompt, load_processor
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.types import Box, Sample, Segment, Turn
from tests.support.command_line import picture
from tests.support.questions import load, tokenizer

TEXT_ONLY = Sample(
    id="text", conversation=[Turn("user", "Is it red?"), Turn("assistant", "no")], label="blue"
)


def thing(number: int, **more: Any) -> Sample:
    colour, shape = (("red", "circle"), ("blue", "square"), ("red", "square"))[number % 3]
    return Sample(
        id=f"thing-{number}",
        images=[picture(number, (24 + number, 20))],
        conversation=[Turn("user", "What is it?", images=1), Turn("assistant", colour)],
        fields={"color": colour, "shape": shape, "number": number},
        boxes=[Box(2, 2, 6, 6)],
        distractors=[Box(6, 6, 6, 6)],
        picture=f"picture-{number // 2}",
        **more,
    )


SAMPLES = [*(thing(number) for number in range(5)), TEXT_ONLY]


def batches(
    checkpoint: str, samples: Sequence[Sample] = SAMPLES, size: int = 3, side: Any = "right"
) -> list[MultimodalBatch]:
    collator = Collator(load_processor(checkpoint), ConversationPrompt(), padding_side=side)
    return [
        collator([(0, sample) for sample in samples[first : first + size]])
        for first in range(0, len(samples), size)
    ]


def run(
    backbone: Backbone,
    checkpoint: str,
    parts: Sequence[MultimodalBatch],
    folder: Path | None = None,
    samples: Sequence[Sample] = SAMPLES,
    **options: Any,
) -> PatchWords:
    analysis = PatchWords(**{"fields": ("color", "shape"), **options})
    analysis.check(samples)
    analysis.prepare(tokenizer(checkpoint), folder)
    for batch in parts:
        analysis.update(backbone, batch)
    return analysis


@pytest.fixture(scope="module")
def backbone(tiny_llava: str) -> Backbone:
    return load(tiny_llava)


@torch.no_grad()
def test_behind_the_last_layer_patches_say_what_the_model_s_own_head_says(
    backbone: Backbone, tiny_llava: str
) -> None:
    (batch,) = batches(tiny_llava, size=6)
    own = backbone.model(**batch.model_inputs()).logits.softmax(-1)
    depth = len(decoder_layers(backbone))
    readings = read_patch_words(backbone, tokenizer(tiny_llava), batch, layers=[depth], top=2)

    for row, reading in enumerate(readings):
        expected = own[row][batch.spans[Segment.IMAGE][row]].topk(2)
        np.testing.assert_allclose(reading.values[0], expected.values.numpy(), rtol=1e-4)
        ids = expected.indices.tolist()
        words = [[tokenizer(tiny_llava).decode([each]).strip() for each in row] for row in ids]
        assert reading.words[0] == words
        assert reading.tokens == tuple(range(len(ids)))
    assert readings[-1].tokens == () and readings[-1].words == [[]]  # a text


def test_rows_hold_what_is_read_and_count_the_object_s_patches_alone(
    backbone: Backbone, tiny_llava: str
) -> None:
    (batch,) = batches(tiny_llava, size=6)
    table = run(backbone, tiny_llava, [batch]).rows.table()
    readings = read_patch_words(backbone, tokenizer(tiny_llava), batch, top=1)
    spans = batch.spans
    its, others = spans[Segment.IMAGE_OBJECT], spans[Segment.IMAGE_DISTRACTORS]
    assert (its & others).any()
    for row, reading in enumerate(readings[:-1]):
        own = (its & ~others)[row][spans[Segment.IMAGE][row]]
        for layer, words in zip(reading.layers, reading.words, strict=True):
            (at,) = np.flatnonzero(
                (table["sample_id"] == reading.sample_id)
                & (table["layer"] == layer)
                & (table["measure"] == "own words")
            )
            assert json.loads(table["patch_words"][at]) == [each[0] for each in words]
            assert table["patches"][at] == own.sum() > 0
            own_words = set(json.loads(table["own"][at]))
            said = json.loads(table["said"][at])
            expected = [each[0] for each, counts in zip(words, own.tolist(), strict=True) if counts]
            for word in own_words:
                assert said.get(word, 0) == sum(each.casefold() == word for each in expected)


def test_neither_batches_nor_padding_matter(backbone: Backbone, tiny_llava: str) -> None:
    whole = run(backbone, tiny_llava, batches(tiny_llava, size=6)).compute()
    assert whole.n_samples == 5
    for size, side in ((1, "right"), (2, "left"), (6, "left")):
        parts = batches(tiny_llava, size=size, side=side)
        found = run(backbone, tiny_llava, [*parts, parts[0]]).compute()
        np.testing.assert_allclose(found.values, whole.values, atol=1e-6)


def test_what_was_stopped_goes_on_and_ends_as_if_it_had_not(
    backbone: Backbone, tiny_llava: str, tmp_path: Path
) -> None:
    parts = batches(tiny_llava, size=2)
    run(backbone, tiny_llava, parts, tmp_path / "whole").merge()
    run(backbone, tiny_llava, parts[:1], tmp_path / "stopped")
    run(backbone, tiny_llava, parts, tmp_path / "stopped").merge()

    for name in ("rows.csv", "top_words.csv"):
        whole = (tmp_path / "whole" / name).read_text()
        assert (tmp_path / "stopped" / name).read_text() == whole
    with pytest.raises(ConfigError, match=r"created with different settings: analysis\.layers"):
        run(backbone, tiny_llava, parts, tmp_path / "whole", layers=[1])


def test_a_bank_reads_the_same_states(backbone: Backbone, tiny_llava: str, tmp_path: Path) -> None:
    texts = [f"the {colour} {shape} is here" for colour in ("red", "blue") for shape in "abc"]
    build_bank(backbone, tokenizer(tiny_llava), texts, tmp_path / "bank")
    bank = Bank(tmp_path / "bank")
    (batch,) = batches(tiny_llava, size=6)
    readings = read_patch_words(backbone, tokenizer(tiny_llava), batch, top=2, bank=bank)
    analysis = run(backbone, tiny_llava, [batch], bank=str(tmp_path / "bank"))
    table = analysis.rows.table()
    at = np.flatnonzero((table["lens"] == "bank") & (table["sample_id"] == "thing-0"))

    assert {word for row in readings[0].words[0] for word in row} <= set(bank.words)
    assert (readings[0].values <= 1).all()
    for row, words in zip(at, readings[0].words, strict=True):
        assert json.loads(table["patch_words"][row]) == [each[0] for each in words]
    assert "bank: own words" in analysis.compute().coords["measure"]


def test_without_boxes_all_patches_count_and_the_class_is_the_word(
    backbone: Backbone, tiny_llava: str, tmp_path: Path
) -> None:
    samples = [
        replace(thing(number), boxes=(), distractors=(), label=label)
        for number, label in enumerate(("red", "light blue", "red", "red"))
    ]
    parts = batches(tiny_llava, samples)
    analysis = run(backbone, tiny_llava, parts, tmp_path, samples, fields=())
    analysis.merge()
    result, table = analysis.compute(), analysis.rows.table()

    assert result.coords["measure"] == ("logit lens: own words", "logit lens: label")
    assert (table["free"] == 0).all() and (table["patches"] > 0).all()
    assert np.isnan(result.at(share="patches on no object", statistic="value")).all()
    top = (tmp_path / "top_words.csv").read_text().splitlines()
    assert top[0] == "lens,layer,label,place,word,share_of_patches,patches"
    assert any(line.startswith("logit lens,0,light blue,1,") for line in top)
    drawn = [(each.name, each.sample_id) for each in result.pictures]  # one of each picture
    assert drawn == [("words-logit-lens-1", "thing-0"), ("words-logit-lens-2", "thing-2")]


def test_what_can_t_be_read_is_refused(backbone: Backbone, tiny_llava: str) -> None:
    with pytest.raises(ConfigError, match="no sample has an image"):
        PatchWords().check([TEXT_ONLY])
    with pytest.raises(ConfigError, match="the field 'number' of sample 'thing-0' is 0"):
        PatchWords(fields=["number"]).check(SAMPLES)
    with pytest.raises(ConfigError, match="has 'size', but no sample has such a field"):
        PatchWords(fields=["size"]).check(SAMPLES)
    with pytest.raises(ConfigError, match="the model has states 0 to"):
        PatchWords(layers=[99]).check_model(backbone)
    with pytest.raises(ConfigError, match="draw_layer is 1, but read are layers 0, 2"):
        PatchWords(layers=[0, 2], draw_layer=1).check_model(backbone)
    PatchWords(layers=[0, 2], draw_layer=2).check_model(backbone)
    with pytest.raises(ConfigError, match="There is no bank"):
        PatchWords(bank="nowhere")
    analysis = PatchWords()
    analysis.prepare(tokenizer(tiny_llava))
    with pytest.raises(ConfigError, match="call check"):
        analysis.update(backbone, batches(tiny_llava)[0])
