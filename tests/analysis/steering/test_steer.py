"""Where a vector is read and added, as text."""

from __future__ import annotations

import pytest

from lightning_mllm.analysis.steering.steer import Steer, find_steer_positions
from lightning_mllm.batches import TokenSpans
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import Segment
from tests.support.decoders import make_batch


@pytest.mark.parametrize(
    ("text", "read_at", "at", "written"),
    [
        ("image object", "image object", "image object", "image object"),
        ("Image  Object -> last", "image object", "last", "image object->last"),
        ("last+question", "question+last", "question+last", "question+last"),
        ("last->last", "last", "last", "last"),
    ],
)
def test_a_steer_is_read_and_written(text: str, read_at: str, at: str, written: str) -> None:
    steer = Steer.parse(text)

    assert (steer.read_at, steer.at, str(steer)) == (read_at, at, written)
    assert Steer.parse(str(steer)) == steer


@pytest.mark.parametrize("text", ["image objct", "last->", "", "last+"])
def test_what_is_no_segment_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a segment"):
        Steer.parse(text)


def test_a_misspelt_segment_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match='Did you mean "image object"'):
        Steer.parse("image objct")


def test_positions_are_those_of_any_segment(tiny_llava: str) -> None:
    spans = make_batch(tiny_llava).spans

    found = find_steer_positions(spans, "question+last")

    assert found.equal(spans[Segment.QUESTION] | spans[Segment.LAST])
    without = TokenSpans({Segment.QUESTION: spans[Segment.QUESTION]})
    with pytest.raises(DataError, match="does not say where 'last' is; it has question"):
        find_steer_positions(without, "question+last")
