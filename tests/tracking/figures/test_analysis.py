"""Figures of results: something is drawn, with its N, and what has no number does no harm."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from lightning_mllm.analysis import AnalysisResult
from lightning_mllm.analysis.core.result import ResultPlot
from lightning_mllm.statistics.interval import STATISTICS
from lightning_mllm.tracking.figures import analysis as analysis_figures
from lightning_mllm.tracking.figures.analysis import draw_analysis_plots
from lightning_mllm.tracking.figures.figure import save_figure
from lightning_mllm.tracking.figures.style import GREY

BLOCKS = ("image->last", "question->last", "object->last")
COORDS: dict[str, tuple[Any, ...]] = {
    "kind": ("all", "$odd_{kind$"),
    "block": BLOCKS,
    "centre": (0, 1, 2),
    "measure": ("change", "margin"),
    "statistic": STATISTICS,
}


def result(values: Any, style: Any, coords: dict[str, tuple[Any, ...]] = COORDS) -> AnalysisResult:
    plot = ResultPlot(
        name="flow",
        style=style,
        x=list(coords)[2],
        y="block",
        shown={block: f"{block}!" for block in BLOCKS},
        fixed={"measure": "change"},
        xlabel="layer",
        label="change (%)",
        title="flow",
    )
    return AnalysisResult("flow", values, tuple(coords), coords, 5, {}, (plot,))


def numbers() -> Any:
    values = np.random.default_rng(0).normal(size=tuple(map(len, COORDS.values())))
    values[..., 3] = 5
    values[:, 2, :, :, 3], values[:, 2, 1:, :, :3] = 4, np.nan
    return values


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []

    def save(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        return save_figure(figure, path)

    monkeypatch.setattr(analysis_figures, "save_figure", save)
    return figures


def lines_by_name(figure: Figure, panel: int) -> dict[str, Any]:
    return {str(line.get_label()): line for line in figure.axes[panel].lines}


def test_lines_are_the_values_with_their_n_and_reach_over_all_layers(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    (path,) = draw_analysis_plots(result(numbers(), "lines"), tmp_path)

    assert path == tmp_path / "flow.png"
    assert path.stat().st_size > 10_000
    axes = drawn[0].axes[:2]
    note = "\nN = 4: object->last!"
    assert [axis.get_title() for axis in axes] == [
        f"all (N = 5){note}",
        f"$odd_{{kind$ (N = 5){note}",
    ]
    assert axes[0].get_legend_handles_labels()[1] == [f"{block}!" for block in BLOCKS]
    line = lines_by_name(drawn[0], 1)["image->last!"]
    np.testing.assert_array_equal(line.get_ydata(), numbers()[1, 0, :, 0, 0])
    assert axes[0].get_xlim() == (-0.5, 2.5)


def test_a_heat_map_has_a_row_per_block_and_0_in_the_middle_of_its_colours(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    draw_analysis_plots(result(numbers(), "heat map"), tmp_path)

    image = drawn[0].axes[0].images[0]
    assert image.get_array().shape == (3, 3)  # type: ignore[union-attr]
    low, high = image.get_clim()
    assert -low == high == np.nanmax(np.abs(numbers()[:, :, :, 0, 0]))


def test_at_a_single_place_there_is_a_row_with_its_interval_per_line(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    coords = {**COORDS, "centre": (3,)}
    found = result(numbers()[:, :, :1], "lines", coords)
    found = replace(found, plots=(replace(found.plots[0], references=(BLOCKS[1],)),))

    draw_analysis_plots(found, tmp_path)

    axis = drawn[0].axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == [f"{b}!" for b in BLOCKS]
    for row, own in enumerate(numbers()[0, :, 0, 0]):
        np.testing.assert_array_equal(axis.lines[row].get_xydata(), [[own[0], row]])
        (bar,) = axis.collections[row].get_segments()  # type: ignore[attr-defined]
        assert bar.tolist() == [[own[1], row], [own[2], row]]
    assert axis.yaxis_inverted()
    assert axis.lines[1].get_color() != axis.lines[0].get_color() == axis.lines[2].get_color()


def test_what_others_are_compared_with_is_grey_and_alone_no_figure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, drawn: list[Figure]
) -> None:
    values = numbers()
    values[0, :2, ..., :3] = np.nan
    caplog.set_level(logging.INFO)
    plot = replace(result(values, "lines").plots[0], references=(BLOCKS[2],), chance=0.25)

    draw_analysis_plots(replace(result(values, "lines"), plots=(plot,)), tmp_path)
    values[1, :2, ..., :3] = np.nan
    assert draw_analysis_plots(replace(result(values, "lines"), plots=(plot,)), tmp_path) == []

    (figure,) = drawn
    (axis,) = figure.axes
    assert axis.get_title().startswith("$odd_{kind$")
    lines = lines_by_name(figure, 0)
    assert lines["object->last!"].get_color() == GREY
    assert set(lines["chance"].get_ydata()) == {0.25}
    assert caplog.messages == ["flow: the figure flow is not drawn: it has no number."]
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_no_interval_there_is_a_line_without_a_band(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    values = numbers()
    values[:, 0, :, :, 1:3] = np.nan  # everywhere
    values[:, 1, 0, :, 1:3] = np.nan  # at one place

    draw_analysis_plots(result(values, "lines"), tmp_path)

    lines = lines_by_name(drawn[0], 0)
    np.testing.assert_array_equal(lines["image->last!"].get_ydata(), values[0, 0, :, 0, 0])
    bands = [
        [path for path in band.get_paths() if len(path)] for band in drawn[0].axes[0].collections
    ]
    everywhere, (at_one_place,) = bands[:2]
    assert everywhere == []
    assert at_one_place.get_extents().intervalx.tolist() == [1, 2]


@pytest.mark.parametrize("style", ["lines", "heat map"])
def test_places_may_have_names(tmp_path: Path, drawn: list[Figure], style: Any) -> None:
    names = ("4 (0-7)", "4 (3-5)", "5 (5-5)")
    coords = {
        "kind": COORDS["kind"],
        "block": BLOCKS,
        "window": names,
        "measure": COORDS["measure"],
    }

    draw_analysis_plots(result(numbers(), style, {**coords, "statistic": STATISTICS}), tmp_path)

    assert [label.get_text() for label in drawn[0].axes[0].get_xticklabels()] == list(names)


@pytest.mark.parametrize("style", ["lines", "heat map"])
def test_a_result_without_numbers_is_not_drawn(tmp_path: Path, style: Any) -> None:
    values = numbers()
    values[..., :3], values[..., 3] = np.nan, 0
    (tmp_path / "flow.png").touch()  # of an earlier result

    assert draw_analysis_plots(result(values, style), tmp_path) == []

    assert list(tmp_path.iterdir()) == []


def test_points_of_one_sample_are_joined_by_a_line(tmp_path: Path, drawn: list[Figure]) -> None:
    coords = {
        "layer": (0, 3),
        "tokens": ("image", "text"),
        "sample": ("a", "b", "c"),
        "coordinate": ("x", "y"),
    }
    values = np.random.default_rng(0).normal(size=(2, 2, 3, 2))
    plot = ResultPlot(
        "map", "points", "sample", "tokens", {"image": "image", "text": "text"}, {}, "", "", "Map"
    )

    draw_analysis_plots(
        AnalysisResult("map", values, tuple(coords), coords, 3, {}, (plot,)), tmp_path
    )

    last = drawn[0].axes[1]
    assert last.get_title() == "layer 3 (N = 3)"
    for at, points in enumerate(last.collections):
        np.testing.assert_array_equal(np.asarray(points.get_offsets()), values[1, at])
    np.testing.assert_array_equal(
        [line.get_xydata() for line in last.lines], values[1].transpose(1, 0, 2)
    )


def test_what_is_not_measured_in_a_panel_is_not_in_its_legend(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    values = numbers()
    values[0, 1, ..., :3], values[0, 1, ..., 3] = np.nan, 0

    draw_analysis_plots(result(values, "lines"), tmp_path)

    first, second = (axis.get_legend_handles_labels()[1] for axis in drawn[0].axes[:2])
    assert not any("question->last" in label for label in first)
    assert any("question->last" in label for label in second)


def test_the_title_says_what_intervals_are_over(tmp_path: Path, drawn: list[Figure]) -> None:
    found = result(numbers(), "lines")

    draw_analysis_plots(
        replace(found, plots=(replace(found.plots[0], over="sets of samples"),)), tmp_path
    )

    assert drawn[0].get_suptitle().endswith("95 % intervals over sets of samples")
