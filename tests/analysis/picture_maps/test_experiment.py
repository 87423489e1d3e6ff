"""Maps say what the model's own forward says; hiding is by the mask, and nothing is run twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_mllm.analysis import PictureMaps
from lightning_mllm.analysis.picture_maps import experiment
from lightning_mllm.analysis.picture_maps.measures import divide_tokens
from lightning_mllm.analysis.picture_maps.summary import ANSWER, ATTENTION, HIDING, WORDS
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.store.sample_maps import SampleMaps, choose_map_samples
from lightning_mllm.types import Sample, Segment
from tests.support.decoders import LAYERS, make_backbone
from tests.support.questions import batches, question, tokenizer


def measure(checkpoint: str, size: int = 4, **options: Any) -> tuple[Backbone, PictureMaps]:
    backbone, analysis = make_backbone(checkpoint), PictureMaps(**options)
    analysis.check([question("test", number) for number in range(6)])
    analysis.prepare(tokenizer(checkpoint))
    for batch in batches(checkpoint, size):
        analysis.update(backbone, batch)
    return backbone, analysis


def by_id(analysis: PictureMaps) -> dict[str, SampleMaps]:
    return {maps.sample_id: maps for maps in analysis.found.read()}


def prompts(checkpoint: str) -> dict[str, MultimodalBatch]:
    found = {}
    for batch in batches(checkpoint, 1):
        found[batch.sample_ids[0]] = batch.prompts()
    return found


def test_the_last_layer_says_what_the_model_says_at_each_patch(tiny_llava: str) -> None:
    backbone, analysis = measure(tiny_llava)
    for sample_id, prompt in prompts(tiny_llava).items():
        with torch.no_grad():
            logprobs = backbone.model(**prompt.model_inputs()).logits[0].log_softmax(-1)
        own = logprobs[prompt.spans[Segment.IMAGE][0]]
        maps = by_id(analysis)[sample_id]
        words, answer = maps.words[WORDS], maps.values[ANSWER]

        said = [words.words[place] for place in words.ids[-1, :, 0]]
        best = own.argmax(-1).tolist()
        assert said == [tokenizer(tiny_llava).decode(each).strip() for each in best]
        np.testing.assert_allclose(words.scores[-1, :, 0], own.max(-1).values, atol=1e-5)
        likeliest = int(logprobs[-1].argmax())
        np.testing.assert_allclose(answer.values[-1], own[:, likeliest], atol=1e-5)
        assert answer.layers == tuple(range(LAYERS + 1))


def test_attention_is_eagers_mean_over_heads(tiny_llava: str) -> None:
    _, analysis = measure(tiny_llava)
    eager = make_backbone(tiny_llava)
    eager.model.set_attn_implementation("eager")
    for sample_id, prompt in prompts(tiny_llava).items():
        with torch.no_grad():
            weights = eager.model(**prompt.model_inputs(), output_attentions=True).attentions
        image = prompt.spans[Segment.IMAGE][0]
        expected = torch.stack([each[0, :, -1].mean(0)[image] for each in weights])
        found = by_id(analysis)[sample_id].values[ATTENTION]
        np.testing.assert_allclose(found.values, expected, atol=1e-6)


def test_the_effect_of_hiding_is_that_of_the_mask(tiny_llava: str) -> None:
    backbone, analysis = measure(tiny_llava, maps=["hiding"])
    sample_id, prompt = next(iter(prompts(tiny_llava).items()))
    with torch.no_grad():
        clean = backbone.model(**prompt.model_inputs()).logits[0, -1].log_softmax(-1)
        positions = prompt.spans[Segment.IMAGE][0].nonzero()[:, 0]
        blocks = divide_tokens(len(positions))
        effect = by_id(analysis)[sample_id].values[HIDING].values[0]
        for block in range(int(blocks.max()) + 1):
            mask = prompt.attention_mask.clone()
            mask[0, positions[blocks == block]] = 0
            hidden = replace(prompt, attention_mask=mask)
            without = backbone.model(**hidden.model_inputs()).logits[0, -1].log_softmax(-1)
            lost = float(clean.max() - without[clean.argmax()])
            np.testing.assert_allclose(effect[blocks == block], lost, atol=1e-5)


def test_maps_do_not_depend_on_the_batch(tiny_llava: str) -> None:
    alone, together = (by_id(measure(tiny_llava, size)[1]) for size in (1, 4))

    assert set(alone) == set(together) and len(alone) == 6
    for sample_id, maps in alone.items():
        for name, each in maps.values.items():
            other = together[sample_id].values[name].values
            np.testing.assert_allclose(each.values, other, atol=1e-5)


def test_only_samples_that_are_drawn_are_measured(tiny_llava: str) -> None:
    _, analysis = measure(tiny_llava, samples=2, maps=["attention"])

    ids = [question("test", number).id for number in range(6)]
    assert set(by_id(analysis)) == choose_map_samples(ids, 2)


def test_a_second_pass_over_a_folder_measures_nothing(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, analysis = make_backbone(tiny_llava), PictureMaps(maps=["attention"])
    analysis.prepare(tokenizer(tiny_llava), tmp_path)
    for batch in batches(tiny_llava, 4):
        analysis.update(backbone, batch)
    first = analysis.compute()

    again = PictureMaps(maps=["attention"])
    again.prepare(tokenizer(tiny_llava), tmp_path)
    monkeypatch.setattr(experiment, "see_prompt", None)
    for batch in batches(tiny_llava, 4):
        again.update(backbone, batch)

    np.testing.assert_array_equal(again.compute().values, first.values)
    with pytest.raises(ConfigError, match="different settings"):
        PictureMaps(maps=["words"]).prepare(tokenizer(tiny_llava), tmp_path)


def test_the_result_has_the_object_and_as_many_others(tiny_llava: str) -> None:
    analysis = measure(tiny_llava)[1]
    result = analysis.compute()

    inside = []
    for maps in analysis.found.read():
        if maps.sets:
            inside.append(maps.values[ATTENTION].values[1][maps.sets["object"]].mean())
    value, *_, n = result.at(map=ATTENTION, patches="object", layer=1)
    assert (value, n) == (pytest.approx(np.mean(inside)), 5)  # one has no box
    assert result.at(map=HIDING, patches="all patches", layer=0)[-1] == 6
    assert result.main_numbers().rows[0][:2] == ("attention", "0")


def test_blocks_are_squares_where_tokens_are_a_square() -> None:
    assert divide_tokens(16).tolist() == [*range(16)]
    assert divide_tokens(36).view(6, 6)[:, 0].tolist() == [0, 0, 4, 8, 8, 12]
    assert divide_tokens(35).unique().tolist() == [*range(16)]
    assert divide_tokens(3).tolist() == [0, 1, 2]


def test_what_can_not_be_drawn_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        PictureMaps(samples=0)
    with pytest.raises(ConfigError, match=r"can have words, attention, hiding, each once"):
        PictureMaps(maps=["words", "words"])
    with pytest.raises(ConfigError, match=r"no sample has one\. Use data with images"):
        PictureMaps().check([Sample(id="text")])
