"""Every family has maps of all its visual tokens, or is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_mllm.analysis import PictureMaps
from lightning_mllm.analysis.picture_maps.summary import ANSWER, ATTENTION, HIDING
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.layers import decoder_layers, layers_without_keys
from lightning_mllm.types import Segment
from tests.conftest import TinyBuilder
from tests.support.loaded import read_processor
from tests.support.tiny_families import TINY_FAMILIES, open_backbone, unequal_pictures

FAST = ("llava_next", "paligemma", "qwen2_5_vl")


@pytest.mark.parametrize(
    "name",
    [
        each if each in FAST else pytest.param(each, marks=pytest.mark.slow)
        for each in TINY_FAMILIES
    ],
)
def test_a_family_has_finite_maps_of_all_visual_tokens(
    name: str, tiny_checkpoint: TinyBuilder
) -> None:
    checkpoint = tiny_checkpoint(name, None)  # type: ignore[arg-type]
    backbone, batch = open_backbone(checkpoint), unequal_pictures(checkpoint)
    depth = len(decoder_layers(backbone))
    analysis = PictureMaps()
    if layers_without_keys(backbone):
        with pytest.raises(
            ConfigError, match=f"does not work with {backbone.model.config.model_type}"
        ):
            analysis.check_model(backbone)
        analysis = PictureMaps(maps=["words", "hiding"])
    analysis.prepare(read_processor(checkpoint).tokenizer)

    analysis.update(backbone, batch)

    found = analysis.found.read()
    assert [maps.sample_id for maps in found] == list(batch.sample_ids)
    for row, maps in enumerate(found):
        assert maps.tokens == int(batch.spans[Segment.IMAGE][row].sum())
        for each in maps.values.values():
            assert np.isfinite(each.values).all()
        assert maps.values[ANSWER].layers == tuple(range(depth + 1))
        assert np.ptp(maps.values[HIDING].values) > 0
        if ATTENTION in maps.values:
            assert (maps.values[ATTENTION].values.sum(1) <= 1 + 1e-5).all()
    prompt = batch.prompts()
    with torch.no_grad():
        logits = backbone.model(**prompt.model_inputs()).logits[:, -1].float()
    for maps, own in zip(found, logits, strict=True):
        said = maps.notes["first token of the model's answer"]
        read = float(said.rpartition("probability ")[2].rstrip(")"))
        assert read == pytest.approx(float(own.softmax(-1).max()), abs=0.006)
