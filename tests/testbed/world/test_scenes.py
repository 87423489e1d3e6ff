import os
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from lightning_mllm.errors import ConfigError
from lightning_mllm.testbed import HELD_OUT, draw_scene
from lightning_mllm.testbed.world.scenes import (
    ATTRIBUTES,
    CELLS,
    COLORS,
    RADII,
    SHAPES,
    SIDE,
    Pairs,
)
from tests.support.world_oracle import LEAST, RELATIONS
from tests.support.worlds import fingerprint, scenes

ROOT = Path(__file__).parents[3]
FRESH = """
import importlib, pkgutil, sys
sys.modules["lightning"] = None
import lightning_mllm.testbed as testbed
for module in pkgutil.walk_packages(testbed.__path__, testbed.__name__ + "."):
    data = (".datamodules", ".datamodule", ".gqa", "testbed.pairs", ".object_samples")
    if not module.name.endswith(data):  # they give data
        importlib.import_module(module.name)
from tests.support.worlds import fingerprint
print(fingerprint())
"""

every_world = pytest.mark.parametrize("pairs", ["seen", "held_out", "all"])


def test_a_fresh_process_without_lightning_makes_the_same_world() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", FRESH],
        env=environment,
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )

    assert result.stdout.strip() == fingerprint()


@every_world
def test_objects_lie_on_the_canvas_and_never_touch(pairs: Pairs) -> None:
    for scene in scenes(300, pairs):
        for thing in scene.objects:
            x, y, width, height = thing.box
            assert x > 0 and y > 0 and x + width < SIDE and y + height < SIDE
        for one, other in combinations(scene.objects, 2):
            gaps = [
                max(one.box[i], other.box[i])
                - min(one.box[i] + one.box[i + 2], other.box[i] + other.box[i + 2])
                for i in (0, 1)
            ]
            assert max(gaps) >= 2


@every_world
def test_attributes_are_those_of_the_world(pairs: Pairs) -> None:
    for scene in scenes(100, pairs):
        assert len({thing.id for thing in scene.objects}) == len(scene.objects)
        for thing in scene.objects:
            assert all(thing.value(name) in values for name, values in ATTRIBUTES.items())
            low, high = RADII[thing.size]
            assert low <= thing.radius <= high
            assert all(1 <= part <= CELLS for part in thing.cell)


def test_sizes_can_be_told_apart() -> None:
    assert max(RADII["small"]) + 2 < min(RADII["large"])


def test_seen_scenes_have_no_pair_that_is_held_out() -> None:
    pairs = {(thing.color, thing.shape) for scene in scenes(1500) for thing in scene.objects}

    assert pairs == {(color, shape) for color in COLORS for shape in SHAPES} - HELD_OUT


def test_held_out_scenes_have_a_pair_that_is() -> None:
    found = [
        {(thing.color, thing.shape) for thing in scene.objects} & HELD_OUT
        for scene in scenes(300, "held_out")
    ]

    assert all(found)
    assert set.union(*found) == HELD_OUT


def test_each_color_and_each_shape_is_held_out_once() -> None:
    assert sorted(color for color, _ in HELD_OUT) == sorted(COLORS)
    assert sorted(shape for _, shape in HELD_OUT) == sorted(SHAPES)


def test_all_values_are_about_as_frequent() -> None:
    things = [thing for scene in scenes(1500) for thing in scene.objects]
    for name, values in ATTRIBUTES.items():
        counts = Counter(thing.value(name) for thing in things)
        for value in values:
            assert 0.8 < counts[value] * len(values) / len(things) < 1.2


def test_objects_often_share_a_color_or_a_texture() -> None:
    couples = [
        couple for scene in scenes(300, objects=(2, 5)) for couple in combinations(scene.objects, 2)
    ]
    for name, alone in (("color", 1 / 8), ("texture", 1 / 4)):
        shared = sum(getattr(one, name) == getattr(other, name) for one, other in couples)
        assert shared / len(couples) > alone + 0.1


@pytest.mark.parametrize("objects", [(1, 1), (2, 3), (5, 5)])
def test_there_are_as_many_objects_as_asked_for(objects: tuple[int, int]) -> None:
    low, high = objects

    assert {len(scene.objects) for scene in scenes(60, objects=objects)} == {*range(low, high + 1)}


@pytest.mark.parametrize("objects", [(0, 3), (3, 2), (1, 6)])
def test_a_number_of_objects_that_cannot_be_is_refused(objects: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=rf"1 to 5 objects, not {objects[0]} to {objects[1]}"):
        draw_scene("any", objects=objects)


def test_scenes_of_other_keys_are_others() -> None:
    assert len({scene.objects for scene in scenes(300)}) == 300
    assert draw_scene("same") == draw_scene("same")


def test_the_graph_says_what_the_objects_say() -> None:
    for scene in scenes(60):
        graph = scene.graph()
        assert (graph["width"], graph["height"]) == (SIDE, SIDE)
        assert [*graph["objects"]] == [thing.id for thing in scene.objects]
        for thing in scene.objects:
            node = graph["objects"][thing.id]
            assert (node["x"], node["y"], node["w"], node["h"]) == thing.box
            assert [*node["attributes"], node["name"]] == [
                thing.size,
                thing.color,
                thing.texture,
                thing.shape,
            ]
            assert {(each["name"], each["object"]) for each in node["relations"]} == {
                (name, other.id)
                for other in scene.objects
                if other is not thing
                for name, distance in RELATIONS.items()
                if distance(thing, other) >= LEAST
            }
