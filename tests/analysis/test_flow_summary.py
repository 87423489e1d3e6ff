"""What the numbers and figures of the information flow are called, from rows that are made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from lightning_mllm.analysis import AnalysisResult, Block, Window
from lightning_mllm.analysis.flow_rows import FlowRow
from lightning_mllm.analysis.flow_summary import MEASURES, summarise_flow
from lightning_mllm.analysis.rows import Rows


def summarised(blocks: Sequence[str], windows: Sequence[Window]) -> AnalysisResult:
    """The result of one question, whose change is ten times a window's centre and its start."""
    rows = Rows(FlowRow)
    rows.append("a", [row(block, window) for block in blocks for window in windows])
    return summarise_flow(rows.table())


def row(block: str, window: Window) -> FlowRow:
    return FlowRow(
        sample_id="a",
        kind="",
        picture="a",
        correct=True,
        block=str(Block.parse(block)),
        centre=window.centre,
        start=window.start,
        stop=window.stop,
        relative_change_percent=10.0 * window.centre + window.start,
    )


def test_windows_that_differ_in_their_centre_are_called_by_it() -> None:
    result = summarised(["image->last"], [Window(5, 0, 9), Window(2, 0, 9)])

    assert result.coords["centre"] == (2, 5)
    assert result.at(block="image->last", measure=MEASURES[0], statistic="value").tolist() == [[20, 50]]


def test_windows_around_one_layer_are_called_by_their_layers_too() -> None:
    result = summarised(["image->last"], [Window(4, 3, 6), Window(4, 0, 8), Window(5, 5, 6)])

    assert result.coords["window"] == ("4 (0-7)", "4 (3-5)", "5 (5-5)")
    assert result.at(block="image->last", measure=MEASURES[0], statistic="value").tolist() == [[40, 43, 55]]
    assert {plot.x for plot in result.plots} == {"window"}
    assert result.settings["found"]["windows"] == [[4, 0, 8], [4, 3, 6], [5, 5, 6]]


def test_a_contrast_with_random_patches_leaves_out_questions_whose_patches_are_on_the_object() -> None:
    both = {"image object->question": {"a": -40.0, "b": -60.0}, "image random->question": {"a": 0.0, "b": -60.0}}
    others = {"question->last": {"a": -10.0, "b": -30.0}}
    rows, window = Rows(FlowRow), Window(0, 0, 1)
    for name in ("a", "b"):
        rows.append(
            name,
            [
                replace(
                    row(block, window),
                    sample_id=name,
                    picture=name,
                    relative_change_percent=changes[name],
                    control_overlap=5 * (name == "b"),
                )
                for block, changes in (both | others).items()
            ],
        )
    pairs = [("image object->question", "image random->question"), ("question->last", "image object->question")]

    result = summarise_flow(rows.table(), contrasts=pairs)

    for block, value, n in (
        ("image object->question minus image random->question", -40, 1),
        ("question->last minus image object->question", 30, 2),
        ("image random->question", -30, 2),
    ):
        found = result.at(kind="", block=block, centre=0, measure=MEASURES[0])
        assert (found[0], found[3]) == (value, n)
    assert result.settings["found"]["with_control_overlap"] == 1


def test_one_question_has_numbers_and_no_interval() -> None:
    result = summarised(["image->last"], [Window(0, 0, 1)])

    value, low, high, n = result.at(kind="", block="image->last", centre=0, measure=MEASURES[0])
    assert (value, n) == (0, 1)
    assert np.isnan([low, high]).all()


@pytest.mark.parametrize(
    ("block", "family"),
    [
        ("image+question->last", "to_last"),
        ("image object&image tiles->question", "patches_to_question"),
        ("image newline+image other->question", "patches_to_question"),
        ("image tiles->question", "other"),
        ("image->question+suffix", "other"),
    ],
)
def test_composed_blocks_are_in_the_figure_of_their_family(block: str, family: str) -> None:
    plots = summarised([block], [Window(0, 0, 1)]).plots

    assert [plot.name for plot in plots] == [family, "heat_map"]
