"""What the numbers and figures of the information flow are called, from rows that are made up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from lightning_mllm.analysis import AnalysisResult, Block, Window
from lightning_mllm.analysis.knockout.measures import MEASURES
from lightning_mllm.analysis.knockout.rows import FlowRow
from lightning_mllm.analysis.knockout.summary import summarise_flow
from lightning_mllm.statistics.shares import wilson_share_interval
from lightning_mllm.store.rows import Rows


def summarised(blocks: Sequence[str], windows: Sequence[Window]) -> AnalysisResult:
    """The result of one question, whose change is ten times a window's centre and its start."""
    rows = Rows(FlowRow)
    rows.append({"a": [row(block, window) for block in blocks for window in windows]})
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
    assert result.at(block="image->last", measure=MEASURES[0], statistic="value").tolist() == [
        [20, 50]
    ]


def test_windows_around_one_layer_are_called_by_their_layers_too() -> None:
    result = summarised(["image->last"], [Window(4, 3, 6), Window(4, 0, 8), Window(5, 5, 6)])

    assert result.coords["window"] == ("4 (0-7)", "4 (3-5)", "5 (5-5)")
    assert result.at(block="image->last", measure=MEASURES[0], statistic="value").tolist() == [
        [40, 43, 55]
    ]
    assert {plot.x for plot in result.plots} == {"window"}
    assert result.settings["found"]["windows"] == [[4, 0, 8], [4, 3, 6], [5, 5, 6]]


def test_a_contrast_with_random_patches_leaves_out_questions_whose_patches_are_on_the_object() -> (
    None
):
    both = {
        "image object->question": {"a": -40.0, "b": -60.0},
        "image random->question": {"a": 0.0, "b": -60.0},
    }
    others = {"question->last": {"a": -10.0, "b": -30.0}}
    rows, window = Rows(FlowRow), Window(0, 0, 1)
    for name in ("a", "b"):
        own = [
            replace(
                row(block, window),
                sample_id=name,
                picture=name,
                relative_change_percent=changes[name],
                control_overlap=5 * (name == "b"),
            )
            for block, changes in (both | others).items()
        ]
        rows.append({name: own})
    pairs = [
        ("image object->question", "image random->question"),
        ("question->last", "image object->question"),
    ]

    result = summarise_flow(rows.table(), contrasts=pairs)

    for block, value, n in (
        ("image object->question minus image random->question", -40, 1),
        ("question->last minus image object->question", 30, 2),
        ("image random->question", -30, 2),
    ):
        found = result.at(kind="", block=block, centre=0, measure=MEASURES[0])
        assert (found[0], found[3]) == (value, n)
    assert len(result.table()[1]) == result.values[..., 0].size
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
    plots = summarised([block], [Window(0, 0, 1), Window(1, 1, 2)]).plots

    assert [plot.name for plot in plots] == [family, "heat_map"]


def test_of_a_single_window_all_blocks_and_the_ceiling_are_in_one_figure() -> None:
    (plot,) = summarised(["image->last", "image->question"], [Window(0, 0, 1)]).plots

    assert plot.name == "blocks"
    assert list(plot.shown) == ["image->last", "image->question", "ceiling"]
    assert plot.references == ("ceiling",)


def studied(
    changes: Sequence[tuple[float, float]], references: Sequence[str], pictures: int = 100
) -> AnalysisResult:
    """Rows of questions, with what a block and the ceiling change; below -50 % an answer flips."""
    rows, window = Rows(FlowRow), Window(0, 0, 1)
    for number, ((change, ceiling), reference) in enumerate(zip(changes, references, strict=True)):
        own = replace(
            row("image->last", window),
            sample_id=f"{number:03}",
            kind="LogicalObj",
            picture=str(number % pictures),
            reference=json.dumps(reference),
        )
        blocked = replace(own, relative_change_percent=change, flipped=change < -50)
        above = replace(
            own,
            relative_change_percent=ceiling,
            flipped=ceiling < -50,
            block="image->text",
            ceiling=True,
        )
        rows.append({own.sample_id: [blocked, above]})
    return summarise_flow(rows.table(), least_per_answer=20)


def test_effects_are_told_as_a_share_of_the_ceiling_with_an_interval() -> None:
    generator = np.random.default_rng(0)
    above = generator.uniform(-100, -20, size=60)
    result = studied([(0.5 * each, each) for each in above], ["yes"] * 60)

    def at(block: str, measure: str) -> list[float]:
        found: list[float] = result.at(
            kind="LogicalObj", block=block, centre=0, measure=measure
        ).tolist()
        return found

    assert at("image->last", "change_of_ceiling_percent") == pytest.approx([50, 50, 50, 60])
    assert at("ceiling", "change_of_ceiling_percent") == pytest.approx([100, 100, 100, 60])
    assert at("ceiling", "flips_of_ceiling_percent") == [100, 100, 100, 60]
    assert at("ceiling", "mean_change_percent")[0] == pytest.approx(above.mean())
    assert at("image->last", "flips_of_ceiling_percent")[0] == 0
    low, high = at("image->last", "flips_of_ceiling_percent")[1:3]
    assert low == 0 < high < 20


def test_where_the_ceiling_may_be_0_a_share_of_it_has_no_interval() -> None:
    result = studied([(-1.0, 3.0), (-2.0, -3.0), (1.0, -1.0)] * 10, ["yes"] * 30)

    found = result.at(
        kind="LogicalObj", block="image->last", centre=0, measure="change_of_ceiling_percent"
    )

    assert np.isfinite(found[0])
    assert np.isnan(found[1:3]).all()


def test_right_answers_have_numbers_of_their_own_where_a_kind_has_several_and_enough_of_them() -> (
    None
):
    answers = ["yes"] * 30 + ["no"] * 25 + ["perhaps"] * 5
    result = studied([(-90.0 if each == "yes" else 0.0, -90.0) for each in answers], answers)

    assert result.coords["kind"] == ("LogicalObj", "LogicalObj: no", "LogicalObj: yes")
    rates = result.at(block="image->last", centre=0, measure="flip_rate")
    assert rates[:, 0].tolist() == [0.5, 0, 1]
    assert rates[:, 3].tolist() == [60, 25, 30]
    assert {plot.panels for plot in result.plots} == {("LogicalObj",)}
    assert studied([(0.0, 0.0)] * 30, ["yes"] * 30).coords["kind"] == ("LogicalObj",)


def test_flips_of_none_and_of_all_have_intervals_with_a_width() -> None:
    result = studied([(0.0, -90.0)] * 22, ["yes"] * 22)

    none, every = (
        result.at(kind="LogicalObj", block=name, centre=0, measure="flip_rate")
        for name in ("image->last", "ceiling")
    )

    assert none.tolist() == pytest.approx([0, *wilson_share_interval(0, 22), 22])
    assert every.tolist() == pytest.approx([1, *wilson_share_interval(1, 22), 22])


def test_flips_of_questions_about_one_picture_are_not_independent() -> None:
    changes = [(-90.0 if number % 20 < 10 else 0.0, -90.0) for number in range(40)]

    alone, shared = (
        studied(changes, ["yes"] * 40, pictures).at(
            kind="LogicalObj", block="image->last", centre=0, measure="flip_rate"
        )
        for pictures in (40, 20)
    )

    assert alone.tolist() == pytest.approx([0.5, *wilson_share_interval(0.5, 40), 40])
    assert shared.tolist() == pytest.approx([0.5, *wilson_share_interval(0.5, 20), 40])
