from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightning_mllm.analysis import Block, Window, Windows
from lightning_mllm.errors import ConfigError
from lightning_mllm.types import Segment


@pytest.mark.parametrize(
    "text",
    [
        "image->question",
        "last->last",
        "image->last[0,3,12]",
        "image object&image tiles->question",
        "image other+image newline->question",
        "image other&image base+image newline->question+suffix[2]",
        "image object->last[3.1,3.2,4.0]",
    ],
)
def test_a_block_reads_what_it_prints(text: str) -> None:
    assert str(Block.parse(text)) == text


def test_a_block_names_source_target_and_heads() -> None:
    block = Block.parse(" Image Object -> QUESTION [3, 0,3] ")

    assert block.source.segments == {Segment.IMAGE_OBJECT}
    assert block.target.segments == {Segment.QUESTION}
    assert block.heads == (0, 3)


def test_a_block_names_heads_of_single_layers() -> None:
    block = Block.parse("image -> last [4.0, 3.2,4.0]")

    assert (block.heads, block.places) == (None, ((3, 2), (4, 0)))
    assert not block.in_all_heads


@pytest.mark.parametrize("heads", ["3.2,1", "3.", ".2", "1.2.3"])
def test_heads_are_of_every_layer_or_of_single_ones(heads: str) -> None:
    with pytest.raises(ConfigError, match=r"heads are numbers.*or layer.head.*write one of both"):
        Block.parse(f"image->last[{heads}]")


def test_both_binds_tighter_than_either() -> None:
    block = Block.parse("last + image object & image tiles->last")

    assert block.source.terms == {
        frozenset({Segment.LAST}),
        frozenset({Segment.IMAGE_OBJECT, Segment.IMAGE_TILES}),
    }
    assert block.source.segments == {Segment.LAST, Segment.IMAGE_OBJECT, Segment.IMAGE_TILES}


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("image other+image newline->last", " Image  Newline+image other -> LAST"),
        ("image object&image tiles->last", "image tiles & image object->last"),
        ("question&last+image object->last", "last&question+image object+question&last&last->last"),
    ],
)
def test_equal_positions_are_equal_blocks_of_one_name(text: str, other: str) -> None:
    assert Block.parse(text) == Block.parse(other)
    assert str(Block.parse(text)) == str(Block.parse(other)) == text
    assert len({Block.parse(text), Block.parse(other)}) == 1


def test_either_is_not_both() -> None:
    assert Block.parse("image object+image tiles->last") != Block.parse(
        "image object&image tiles->last"
    )


@pytest.mark.parametrize(
    "text", ["image", "image->", "->last", "image->last->question", "image->last[]", "a->b[c]"]
)
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"can't be read\. Write source->target"):
        Block.parse(text)


@pytest.mark.parametrize(
    "text", ["image+->last", "&image->last", "image++question->last", "image->last + [1]"]
)
def test_an_empty_term_is_refused(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"can't be read: \+ \(either\) and & \(both\) each stand between two"
    ):
        Block.parse(text)


def test_an_unknown_segment_is_refused_with_the_nearest_and_all() -> None:
    with pytest.raises(
        ConfigError,
        match=r"(?s)'images', which is not a segment.*last.*true option.*mean \"image\"\?",
    ):
        Block.parse("images->last")


def test_an_unknown_segment_of_a_composition_is_refused_by_its_own_name() -> None:
    with pytest.raises(
        ConfigError, match=r"(?s)'image tile', which is not a segment.*mean \"image tiles\"\?"
    ):
        Block.parse("question+image object & image tile->last")


def test_an_odd_window_lies_evenly_around_its_centre() -> None:
    assert Windows(width=5, centres=[6]).of(12) == [Window(6, 4, 9)]


def test_an_even_window_reaches_one_layer_further_down() -> None:
    assert Windows(width=4, centres=[6]).of(12) == [Window(6, 4, 8)]


def test_windows_are_cut_short_at_the_edges_not_shifted() -> None:
    found = Windows(width=9).of(32)

    assert [(each.start, each.stop) for each in found[:6]] == [
        (0, 5),
        (0, 6),
        (0, 7),
        (0, 8),
        (0, 9),
        (1, 10),
    ]
    assert [(each.start, each.stop) for each in found[-5:]] == [
        (23, 32),
        (24, 32),
        (25, 32),
        (26, 32),
        (27, 32),
    ]
    assert [each.centre for each in found] == list(range(32))


def test_windows_of_one_layer_are_the_layers() -> None:
    assert [(each.start, each.stop) for each in Windows(width=1).of(3)] == [(0, 1), (1, 2), (2, 3)]


def test_ranges_can_be_fractions_of_the_depth() -> None:
    assert Windows(layers=[(0.0, 0.5), (2, 1.0)]).of(8) == [Window(2, 0, 4), Window(5, 2, 8)]


def test_a_window_is_by_default_the_paper_s_share_of_the_depth() -> None:
    assert [len(Windows(centres=[depth // 2]).of(depth)[0]) for depth in (32, 40)] == [7, 9]


def test_numbers_of_numpy_are_numbers() -> None:
    ranges: Any = [(np.float32(0), np.float32(0.5)), (np.int64(1), np.int64(3))]

    half = Windows(layers=ranges).of(8)

    assert half == [Window(2, 0, 4), Window(2, 1, 3)]
    assert all(type(edge) is int for window in half for edge in (window.start, window.stop))


def test_width_and_centres_can_be_fractions_of_the_depth() -> None:
    assert Windows(width=0.25, centres=[0.0, 0.5, 1.0]).of(33) == [
        Window(0, 0, 4),
        Window(16, 12, 20),
        Window(32, 28, 33),
    ]
    assert len(Windows(width=0.01, centres=[3]).of(8)[0]) == 1


def test_ranges_of_layers_can_be_given_instead() -> None:
    found = Windows(layers=[(0, 4), (2, 5)]).of(8)

    assert found == [Window(2, 0, 4), Window(3, 2, 5)]
    assert [4 in each for each in found] == [False, True]


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (Windows(width=0), "can't have the width 0"),
        (Windows(width=-3), "can't have the width -3"),
        (Windows(width=1.5), "can't have the width 1.5"),
        (Windows(centres=[8]), "centred on 8: the decoder has the layers 0 to 7"),
        (Windows(centres=[-1]), "centred on -1"),
        (Windows(centres=[1.2]), "centred on 1.2"),
        (Windows(layers=[(3, 3)]), r"\(3, 3\) is not a range"),
        (Windows(layers=[(0, 9)]), r"\(0, 9\) is not a range of layers: .* <= 8"),
        (Windows(centres=[]), "no window"),
        (Windows(layers=[]), "no window"),
    ],
)
def test_windows_that_do_not_fit_are_refused(windows: Windows, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        windows.of(8)
