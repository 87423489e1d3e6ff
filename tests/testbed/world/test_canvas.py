import hashlib
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from lightning_mllm.testbed import Scene, draw_image
from lightning_mllm.testbed.world.canvas import RGB, SHAPE_MASKS, TEXTURE_MASKS
from lightning_mllm.testbed.world.scenes import COLORS, SHAPES, SIDE, TEXTURES
from tests.support.worlds import scenes

# over the pixels of 20 scenes
SHA256 = "88289f656bfc3c0b0ef6a4fb2a6ee1143266a8a59f9401508b84072ed23a5113"


def pixels(scene: Scene) -> NDArray[np.int64]:
    return np.asarray(draw_image(scene)).astype(np.int64)


def test_pictures_are_the_same_on_every_machine() -> None:
    digest = hashlib.sha256()
    for scene in scenes(10) + scenes(10, "held_out"):
        digest.update(draw_image(scene).tobytes())

    assert digest.hexdigest() == SHA256


def test_a_scene_looks_the_same_each_time() -> None:
    for scene in scenes(5):
        image = draw_image(scene)
        assert (image.size, image.mode) == ((SIDE, SIDE), "RGB")
        assert image.tobytes() == draw_image(scene).tobytes()


def test_equal_objects_of_two_scenes_do_not_look_equal() -> None:
    (scene,) = scenes(1)

    assert draw_image(scene).tobytes() != draw_image(replace(scene, id="other")).tobytes()


def test_around_the_objects_is_dark_grey_ground() -> None:
    for scene in scenes(50):
        image, ground = pixels(scene), np.ones((SIDE, SIDE), dtype=bool)
        for thing in scene.objects:
            x, y, width, height = thing.box
            ground[y : y + height, x : x + width] = False
        assert image[ground].max() <= 95 + 20 + 12
        assert np.ptp(image[ground], axis=-1).max() <= 2 * 12


def test_the_brightest_pixels_of_an_object_have_its_color() -> None:
    palette = np.array([RGB[color] for color in COLORS])
    for scene in scenes(100):
        image = pixels(scene)
        for thing in scene.objects:
            x, y, width, height = thing.box
            inside = image[y : y + height, x : x + width].reshape(-1, 3)
            brightest = inside[np.argsort(inside.max(axis=1))[-20:]].mean(axis=0)
            distances = ((palette - brightest) ** 2).sum(axis=1)
            assert COLORS[int(distances.argmin())] == thing.color


@pytest.mark.parametrize("texture", TEXTURES)
def test_textures_darken_part_of_an_object(texture: str) -> None:
    step = np.arange(-10, 10, 0.25) + 0.125
    share = TEXTURE_MASKS[texture](step[None, :], step[:, None]).mean()

    assert share == 0 if texture == "solid" else 0.25 < share < 0.6


def test_shapes_fill_their_boxes_and_differ() -> None:
    step = np.linspace(-1, 1, 200)
    masks = {shape: SHAPE_MASKS[shape](step[None, :], step[:, None]) for shape in SHAPES}

    assert [*masks] == [*SHAPE_MASKS]
    for mask in masks.values():
        assert 0.25 < mask.mean() < 0.85
        rows, columns = np.nonzero(mask)
        assert np.ptp(rows) > 150 and np.ptp(columns) > 150
    for one, other in combinations(masks.values(), 2):
        assert (one & other).sum() < 0.85 * (one | other).sum()


def test_there_is_paint_for_every_value() -> None:
    assert [sorted(each) for each in (RGB, SHAPE_MASKS, TEXTURE_MASKS)] == [
        sorted(each) for each in (COLORS, SHAPES, TEXTURES)
    ]
