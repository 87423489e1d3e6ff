import re

import pytest

from lightning_mllm.testbed import Draw, Scene, SceneObject, caption
from lightning_mllm.testbed.language.captions import (
    caption_object,
    caption_place,
    write_caption_notes,
)
from lightning_mllm.testbed.world.scenes import Pairs
from tests.support.world_oracle import ATTRIBUTE_OF
from tests.support.worlds import scenes

PART = re.compile(
    r"(?P<size>\w+) (?P<color>\w+) (?P<texture>\w+) (?P<shape>\w+) at (?P<column>\d) (?P<row>\d)"
)

every_world = pytest.mark.parametrize("pairs", ["seen", "held_out"])


def facts(thing: SceneObject) -> dict[str, str]:
    return {
        **{name: getattr(thing, name) for name in ("size", "color", "texture", "shape")},
        "column": str(thing.x // 8 + 1),
        "row": str(thing.y // 8 + 1),
    }


@every_world
def test_a_caption_lists_all_objects_from_left_to_right(pairs: Pairs) -> None:
    for scene in scenes(150, pairs):
        parts = [PART.fullmatch(part) for part in caption(scene).split(", ")]

        ordered = sorted(scene.objects, key=lambda thing: (thing.x, thing.y))
        assert [part.groupdict() for part in parts if part] == [facts(thing) for thing in ordered]
        assert all(parts)


def test_columns_of_a_caption_never_go_back() -> None:
    for scene in scenes(50):
        columns = [int(column) for column in re.findall(r"at (\d)", caption(scene))]
        assert columns == sorted(columns)


@every_world
def test_notes_hold_the_words_of_the_caption(pairs: Pairs) -> None:
    for scene in scenes(150, pairs):
        assert sorted(read(write_caption_notes(scene, Draw("notes", scene.id)))) == sorted(
            tuple(sorted(facts(thing).items())) for thing in scene.objects
        )


def test_a_third_of_the_notes_have_the_attributes_in_any_order() -> None:
    found = [
        write_caption_notes(scene, Draw("notes", scene.id)) for scene in scenes(300, objects=(3, 5))
    ]
    ordered = r"(\w+ \w+ \w+ \w+ \d \d(, )?)+"

    inner = [bool(re.fullmatch(ordered, text)) and in_order(text) for text in found]
    assert abs(inner.count(False) / len(found) - 1 / 3) < 4 * (2 / 9 / len(found)) ** 0.5


def test_notes_do_not_tell_the_order_of_places() -> None:
    first = [text_begins_leftmost(scene) for scene in scenes(300, objects=(2, 2))]

    assert abs(sum(first) / len(first) - 1 / 2) < 4 * (1 / 4 / len(first)) ** 0.5


def test_phrase_and_place_are_what_the_caption_is_made_of() -> None:
    (scene,) = scenes(1, objects=(1, 1))
    (thing,) = scene.objects

    assert caption(scene) == f"{caption_object(thing)} at {caption_place(thing)}"


def read(text: str) -> list[tuple[tuple[str, str], ...]]:
    """Return the facts of a note, whatever their order."""
    found = []
    for part in text.split(", "):
        (column, row), words = re.findall(r"\d", part), re.findall("[a-z]+", part)
        known = {ATTRIBUTE_OF[word]: word for word in words}
        assert len(known) == len(words) == 4
        found.append(tuple(sorted({**known, "column": column, "row": row}.items())))
    return found


def in_order(text: str) -> bool:
    return all(
        [ATTRIBUTE_OF[word] for word in re.findall("[a-z]+", part)]
        == ["size", "color", "texture", "shape"]
        for part in text.split(", ")
    )


def text_begins_leftmost(scene: Scene) -> bool:
    first, *_ = read(write_caption_notes(scene, Draw("notes", scene.id)))
    return dict(first) == facts(min(scene.objects, key=lambda thing: thing.x))
