"""Features of every family: replayed bit for bit, and pooled where patches form a square."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_mllm.errors import ConfigError
from lightning_mllm.probing.features.cache import FeatureCache
from lightning_mllm.probing.features.extraction import extract
from lightning_mllm.probing.features.points import Point
from lightning_mllm.probing.features.pooling import pool
from tests.conftest import FamilyBuilder
from tests.support.feature_samples import NAMES, batches, equal, samples
from tests.support.grids import (
    FIXED,
    MERGED,
    ROWS,
    SPLITS,
    SQUARE,
    TILES,
    WITH_GRID,
)
from tests.support.loaded import load_copy

EVERY = [*WITH_GRID, "gemma4"]
POINTS = [Point("pre"), Point("post"), Point("post", pooling="max"), Point("image", 1)]
GRID = Point("pre", pooling="grid")


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_states_of_the_tower_give_the_same_features_again_bit_for_bit(
    tiny_family: FamilyBuilder, name: str
) -> None:
    """Of one image and of several, whose states are then replayed together."""
    path = load_copy(tiny_family(name)).vision_path
    (batch,) = batches(tiny_family(name), samples(3), size=3)
    for images in (batch.images[:1], batch.images):
        with torch.no_grad():
            seen = path.observe(images)
            again = path.replay(images, [each.tower for each in seen])

        assert len(again) == len(seen) == len(images)
        for one, other in zip(seen, again, strict=True):
            assert torch.equal(one.encoded.tokens, other.encoded.tokens)
            assert torch.equal(one.projected_from, other.projected_from)
            assert torch.equal(one.tower, other.tower)
            for layer, replayed in zip(one.encoded.deep, other.encoded.deep, strict=True):
                assert torch.equal(layer, replayed)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_the_cache_gives_the_same_features_whether_it_has_them_or_not(
    tiny_family: FamilyBuilder, name: str, tmp_path: Path
) -> None:
    backbone = load_copy(tiny_family(name))
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(False)
    data = batches(tiny_family(name), samples(4))

    misses = extract(backbone, data, POINTS, NAMES, cache=FeatureCache(tmp_path))
    hits = extract(backbone, data, POINTS, NAMES, cache=FeatureCache(tmp_path))
    exact = extract(backbone, data, POINTS, NAMES)

    assert equal(hits, misses)
    for point, expected in exact.items():
        torch.testing.assert_close(hits[point].features, expected.features, atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize("name", [*MERGED, *ROWS, "gemma4"])
@pytest.mark.parametrize("point", [GRID, Point("post", pooling="grid")])
def test_a_grid_is_refused_where_patches_form_no_square(
    tiny_family: FamilyBuilder, name: str, point: Point
) -> None:
    backbone = load_copy(tiny_family(name))
    data = batches(tiny_family(name), samples(1))

    family = backbone.model.config.model_type
    with pytest.raises(ConfigError, match=rf"the patches of {family} .* Use pooling mean or max"):
        extract(backbone, data, [point], NAMES)


@pytest.mark.parametrize("name", [*FIXED, *SQUARE, "llava_next", *TILES, *SPLITS])
def test_a_grid_before_the_projector_is_that_of_the_whole_picture(
    tiny_family: FamilyBuilder, name: str
) -> None:
    backbone = load_copy(tiny_family(name))
    (batch,) = batches(tiny_family(name), samples(1, images=1))
    with torch.no_grad():
        (seen,) = backbone.vision_path.observe(batch.images)
    whole = seen.projected_from[-1 if name in (*TILES, *SPLITS) else 0]

    found = extract(backbone, [batch], [GRID], NAMES)[GRID.name].features[0]

    assert torch.equal(found, pool([whole[None]], "grid"))


@pytest.mark.parametrize("name", SQUARE)
def test_pooled_tokens_form_a_grid_too(tiny_family: FamilyBuilder, name: str) -> None:
    backbone, point = load_copy(tiny_family(name)), Point("post", pooling="grid")
    (batch,) = batches(tiny_family(name), samples(1))
    with torch.no_grad():
        (image,) = backbone.encode_images(batch.images)

    found = extract(backbone, [batch], [point], NAMES)[point.name].features[0]

    assert torch.equal(found, pool([image.tokens[None]], "grid"))


@pytest.mark.parametrize(
    ("name", "place"), [("llava", 0), ("llava_dinov2", 0), ("vipllava", 0), ("internvl", -1)]
)
def test_a_class_token_is_that_of_the_whole_picture(
    tiny_family: FamilyBuilder, name: str, place: int
) -> None:
    backbone, point = load_copy(tiny_family(name)), Point("pre", pooling="cls")
    (batch,) = batches(tiny_family(name), samples(1))
    with torch.no_grad():
        (seen,) = backbone.vision_path.observe(batch.images)

    found = extract(backbone, [batch], [point], NAMES)[point.name].features[0]

    assert torch.equal(found, torch.cat(list(seen.tower[:, place, 0]), dim=-1))


@pytest.mark.parametrize("name", ["paligemma", "qwen2_vl", "mistral3", "smolvlm"])
def test_a_tower_without_a_class_token_is_refused(tiny_family: FamilyBuilder, name: str) -> None:
    backbone = load_copy(tiny_family(name))
    data = batches(tiny_family(name), samples(1))

    with pytest.raises(ConfigError, match=r"'cls' needs a class token, and this vision tower has"):
        extract(backbone, data, [Point("pre", pooling="cls")], NAMES)


def test_a_convolving_projector_is_pooled_by_patches(tiny_family: FamilyBuilder) -> None:
    backbone = load_copy(tiny_family("got_ocr2"), attention="eager")
    (batch,) = batches(tiny_family("got_ocr2"), samples(1))
    with torch.no_grad():
        (seen,) = backbone.vision_path.observe(batch.images)

    config = backbone.model.config.vision_config
    patches = (config.image_size // config.patch_size) ** 2
    assert seen.projected_from.shape == (1, patches, config.output_channels)
