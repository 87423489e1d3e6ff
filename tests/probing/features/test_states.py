"""States of single tokens: those of the model's own forward, with what each row is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mllm.errors import ConfigError
from lightning_mllm.probing import Point, extract, extract_states
from lightning_mllm.probing.features.reading import PointReader
from lightning_mllm.probing.features.tapping import Tapper
from lightning_mllm.types import Segment
from tests.conftest import FamilyBuilder
from tests.families.checkpoints import Colours, TinyModel

NAMES = ("red", "light green")
FAMILIES = ("llava_next", "qwen2_vl", "qwen3_vl")  # tiles, M-RoPE, DeepStack
POOLED = [Point("tower", 1), Point("pre"), Point("post"), Point("image", 1), Point("last", 2)]
TOKENS = [
    Point("post", pooling="none"),
    *(Point("image", k, "none") for k in (0, 1)),
    *(Point("text", k, "none") for k in (0, 1, 2)),
    Point("prompt", 1, "none"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_the_models_own_forward_and_of_the_probes(
    tiny_family: FamilyBuilder, tmp_path: Path, family: str
) -> None:
    tiny = TinyModel(family, tiny_family(family), tmp_path)
    backbone = tiny.load()
    batch = next(iter(Colours(checkpoint=tiny.path, eval_batch_size=2).plain_dataloader("test")))
    with torch.no_grad():
        own = backbone.model(**batch.model_inputs(), output_hidden_states=True).hidden_states
    found: dict[tuple[str, str], Tensor] = {}
    for each in extract_states(backbone, [batch], [*POOLED, *TOKENS]):
        found[each.sample_id, each.point.name] = each.states
        if each.token_ids is not None and each.spans:
            _check_spans(each.spans, each.token_ids, backbone.model.config.image_token_id)

    probed = extract(backbone, [batch], POOLED, NAMES)
    image = batch.spans[Segment.IMAGE]
    for row, name in enumerate(batch.sample_ids):
        for point, features in probed.items():
            assert torch.equal(found[name, point][0], features.features[row])
        last = int(batch.spans[Segment.LAST][row].nonzero())
        text = (
            ~image[row] & (torch.arange(len(image[row])) <= last) & batch.attention_mask[row].bool()
        )
        for layer in (0, 1):
            assert torch.equal(found[name, f"layer{layer}-text"], own[layer][row][text])
        assert torch.equal(found[name, "layer0-image"], own[0][row][image[row]])
        assert torch.equal(found[name, "layer0-image"], found[name, "post"])
        if family != "qwen3_vl":  # whose layers get more of the picture after their work
            assert torch.equal(found[name, "layer1-image"], own[1][row][image[row]])
        norm: Any = backbone.decoder.norm
        normed = norm(found[name, "layer2-text"])
        assert torch.equal(normed, own[2][row][text])
        pooled = found[name, "layer1-image"].float().mean(dim=0)
        assert torch.equal(pooled, found[name, "layer1-image-mean"][0])
        assert len(found[name, "layer1-prompt"]) == int(text.sum() + image[row].sum())


def _check_spans(spans: Mapping[Segment, list[list[int]]], ids: Tensor, image_id: int) -> None:
    marked = torch.zeros(len(ids), dtype=torch.bool)
    for start, end in spans.get(Segment.IMAGE, []):
        marked[start:end] = True
    assert torch.equal(marked, ids == image_id)


def test_layers_of_the_tower_are_its_own_hidden_states(tiny_llava: str, tmp_path: Path) -> None:
    tiny = TinyModel("llava", tiny_llava, tmp_path)
    backbone = tiny.load()
    batch = next(iter(Colours(checkpoint=tiny.path, eval_batch_size=2).plain_dataloader("test")))
    pixels = torch.cat([image["pixel_values"] for image in batch.images])
    with torch.no_grad():
        own = backbone.vision_tower(pixels, output_hidden_states=True).hidden_states
    layers = range(len(backbone.vision_path.tower_layers) + 1)
    points = [Point("tower", k, "none") for k in layers] + [Point("tower", k) for k in layers]
    tap = backbone.vision_path.taps[0] + 1

    found = {}
    for each in extract_states(backbone, [batch], [*points, Point("pre")]):
        found[each.sample_id, each.point.name] = each.states

    for row, name in enumerate(batch.sample_ids):
        for layer in layers:
            assert torch.equal(found[name, f"tower{layer}"], own[layer][row])
        # without the class token
        assert torch.equal(found[name, f"tower{tap}-mean"], found[name, "pre-mean"])


def test_what_a_model_can_not_give_is_refused(tiny_family: FamilyBuilder, tmp_path: Path) -> None:
    backbone = TinyModel("qwen2_5_vl", tiny_family("qwen2_5_vl"), tmp_path).load()

    for point in (Point("tower", 1, "none"), Point("pre", pooling="none")):
        with pytest.raises(ConfigError, match="qwen2_5_vl orders the patches by windows"):
            PointReader(backbone, [point])
    with pytest.raises(ConfigError, match=r"vision tower has layers 0 \(its input\) to 3"):
        PointReader(backbone, [Point("tower", 9)])
    with pytest.raises(ConfigError, match="a probe takes one vector per sample"):
        Tapper(backbone, [Point("image", 1, "none")])
    with pytest.raises(ConfigError, match="text has no grid"):
        Point("text", 1, "grid")
