from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.tiny import TinyFamily, build_tiny_checkpoint
from lightning_mllm.probing.features.cache import FeatureCache
from lightning_mllm.probing.features.extraction import extract
from lightning_mllm.probing.features.points import Point
from tests.conftest import TinyBuilder
from tests.support.feature_samples import (
    EVERYWHERE,
    FAMILIES,
    NAMES,
    VISION,
    batches,
    count_tower_runs,
    equal,
    samples,
)


@FAMILIES
def test_cached_features_equal_fresh_ones(
    tiny_checkpoint: TinyBuilder, family: TinyFamily, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(family, "vicuna")
    backbone = Backbone.from_pretrained(checkpoint)
    backbone.vision_tower.requires_grad_(False)
    tower = count_tower_runs(backbone)
    data = batches(checkpoint, samples(5))
    cache = FeatureCache(tmp_path)

    # the cache knows some of the images
    extract(backbone, data[1:2], EVERYWHERE, NAMES, cache=cache)
    misses = extract(backbone, data, EVERYWHERE, NAMES, cache=cache)
    assert tower() == 5
    hits = extract(backbone, data, EVERYWHERE, NAMES, cache=FeatureCache(tmp_path))
    assert tower() == 5
    never_stored = extract(
        backbone, data, EVERYWHERE, NAMES, cache=FeatureCache(tmp_path / "full", 1e-9)
    )
    exact = extract(backbone, data, EVERYWHERE, NAMES)

    assert equal(hits, misses)
    assert equal(hits, never_stored)
    for name, expected in exact.items():
        torch.testing.assert_close(hits[name].features, expected.features, atol=2e-2, rtol=2e-2)
    # other numbers of views that only pad the batch
    other = batches(checkpoint, samples(5), size=4)
    extract(backbone, other, EVERYWHERE, NAMES, cache=cache)
    assert tower() == 5 + 5 + 3  # those of `never_stored` and of `exact`


def test_the_cache_serves_every_projector_and_no_other_tower(
    tiny_llava: str, tmp_path: Path
) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    backbone.vision_tower.requires_grad_(False)
    data = batches(tiny_llava, samples(2))
    points = [Point("pre"), Point("post")]
    cache = FeatureCache(tmp_path)
    tower = count_tower_runs(backbone)
    before = extract(backbone, data, points, NAMES, cache=cache)

    backbone.projector.linear_1.weight.data.mul_(2)  # type: ignore[operator,union-attr]
    trained = extract(backbone, data, points, NAMES, cache=cache)
    assert tower() == 2
    assert torch.equal(trained["pre-mean"].features, before["pre-mean"].features)
    assert not torch.equal(trained["post-mean"].features, before["post-mean"].features)

    other = Backbone.from_pretrained(str(build_tiny_checkpoint(tmp_path / "other", seed=1)))
    other.vision_tower.requires_grad_(False)
    found = extract(other, data, points, NAMES, cache=cache)
    assert equal(found, extract(other, data, points, NAMES, cache=FeatureCache(tmp_path / "empty")))


def test_autocast_has_entries_of_its_own(tiny_llava: str, tmp_path: Path) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    backbone.vision_tower.requires_grad_(False)
    data, points, cache = (
        batches(tiny_llava, samples(2)),
        [Point("pre"), Point("post")],
        FeatureCache(tmp_path),
    )
    exact = extract(backbone, data, points, NAMES, cache=cache)

    with torch.autocast("cpu", torch.bfloat16):
        misses = extract(backbone, data, points, NAMES, cache=cache)
        hits = extract(backbone, data, points, NAMES, cache=cache)

    assert equal(hits, misses)
    assert not equal(hits, exact)


def test_a_cache_for_a_trained_tower_is_refused(tiny_llava: str, tmp_path: Path) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)

    with pytest.raises(ConfigError, match="tower is trained, so its features change"):
        extract(
            backbone, batches(tiny_llava, samples(2)), VISION, NAMES, cache=FeatureCache(tmp_path)
        )


def test_the_cache_knows_buffers_too(tiny_llava: str, tmp_path: Path) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    backbone.vision_tower.requires_grad_(False)
    backbone.vision_tower.register_buffer("running_mean", torch.zeros(3))
    data, cache = batches(tiny_llava, samples(2)), FeatureCache(tmp_path)
    tower = count_tower_runs(backbone)

    extract(backbone, data, VISION, NAMES, cache=cache)
    backbone.vision_tower.get_buffer("running_mean").add_(1)
    extract(backbone, data, VISION, NAMES, cache=cache)

    assert tower() == 4


def test_a_projector_gets_cached_features_in_the_dtype_of_fresh_ones(
    tiny_llava: str, tmp_path: Path
) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    backbone.vision_tower.requires_grad_(False)
    weights = dict(backbone.vision_tower.named_parameters())
    (first,) = (name for name in weights if name.endswith("class_embedding"))
    # the others, and so the features, are in float32
    weights[first].data = weights[first].data.bfloat16()
    seen: list[torch.dtype] = []
    backbone.projector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    data, cache = batches(tiny_llava, samples(2)), FeatureCache(tmp_path)

    for how in (None, cache, cache):
        extract(backbone, data, [Point("post")], NAMES, cache=how)

    assert set(seen) == {torch.float32}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch 2.13 warns of itself while it compiles
def test_a_compiled_model_is_tapped_in_every_batch(tiny_llava: str) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    data = batches(tiny_llava, samples(4))
    expected = extract(backbone, data, EVERYWHERE, NAMES)

    backbone.model.base_model.compile(backend="eager")
    with torch.no_grad():
        backbone.model(**data[0].model_inputs())  # is compiled here, without a hook

    assert equal(extract(backbone, data, EVERYWHERE, NAMES), expected)
