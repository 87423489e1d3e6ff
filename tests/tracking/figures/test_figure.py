"""What holds for all figures: curves can be told apart, texts are whole, legends hide nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lightning_mllm.analysis import AnalysisResult
from lightning_mllm.analysis.core.result import ResultPlot
from lightning_mllm.statistics.interval import STATISTICS
from lightning_mllm.tracking.analysis_curves import make_curve_rows
from lightning_mllm.tracking.figures import analysis as analysis_figures
from lightning_mllm.tracking.figures import study as study_figures
from lightning_mllm.tracking.figures import training as training_figures
from lightning_mllm.tracking.figures.analysis import draw_analysis_plots
from lightning_mllm.tracking.figures.figure import save_figure
from lightning_mllm.tracking.figures.study import StudyPoint, draw_study_lines
from lightning_mllm.tracking.figures.style import choose_figure_styles
from lightning_mllm.tracking.figures.training import draw_analysis_training
from tests.support.figures import (
    check_figure_reaches_nowhere_outside,
    curve_looks,
    keep_figures,
    legends,
    legends_outside,
)

KINDS = ("all", "seen/a kind of question with a very long name", "b", "c", "d", "e", "f")


def made_up(kinds: int, lines: int, places: int = 4, style: Any = "lines") -> AnalysisResult:
    names = tuple(f"line {'abcdefghijklmnopqrstuvwxyz'[line]}" for line in range(lines))
    coords: dict[str, tuple[Any, ...]] = {
        "kind": KINDS[:kinds],
        "line": names,
        "layer": tuple(range(places)),
        "statistic": STATISTICS,
    }
    values = np.random.default_rng(0).normal(size=tuple(map(len, coords.values())))
    values[..., 3] = 7
    values[:, -1, :, 3] = 5
    plot = ResultPlot(
        name="plot",
        style=style,
        x="layer",
        y="line",
        shown={name: f"{name}, which is called this at length" for name in names},
        fixed={},
        xlabel="After how many layers, counted from the first one",
        label="What is measured, in units that nobody knows by heart",
        title="A title that says what is drawn, in which unit and of what, as titles of figures do",
    )
    return AnalysisResult("made_up", values, tuple(coords), coords, 7, {}, (plot,))


@pytest.mark.parametrize("names", [1, 7, 28, 42])
def test_each_curve_has_a_dash_or_a_marker_of_its_own_without_any_colour(names: int) -> None:
    styles = choose_figure_styles([f"line {chr(0x4E00 + name)}" for name in range(names)])

    assert len({(str(style.dashes), style.marker) for style in styles.values()}) == names


def test_steps_go_from_dark_to_light_in_the_order_of_their_numbers() -> None:
    names = ["before", *(f"run-step{step}" for step in (50, 1000, 200, 100)), "after"]
    styles = choose_figure_styles(names)
    weights = np.array([0.299, 0.587, 0.114])

    light = [
        float(np.dot(to_rgb(styles[f"run-step{step}"].colour), weights))
        for step in (50, 100, 200, 1000)
    ]
    assert light == sorted(light) and light[-1] - light[0] > 0.4
    assert list(styles) == names
    assert len({(each.colour, str(each.dashes), each.marker) for each in styles.values()}) == 6


@pytest.mark.parametrize(
    ("kinds", "lines", "places"), [(1, 2, 4), (1, 17, 4), (4, 3, 4), (5, 3, 4), (7, 9, 1)]
)
def test_nothing_is_cut_and_legends_of_many_curves_or_panels_hide_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: int, lines: int, places: int
) -> None:
    (figure,) = _draw(made_up(kinds, lines, places), tmp_path, monkeypatch)

    check_figure_reaches_nowhere_outside(figure)
    panels = [axis for axis in figure.axes if axis.axison]
    for axis in panels:
        assert len(set(curve_looks(axis))) == (lines if places > 1 else 0)
    if places == 1:
        assert not list(legends(figure))
    elif max(kinds, lines) > 4:
        assert len(list(legends(figure))) == 1
        assert legends_outside(figure, panels)
    else:
        assert len(list(legends(figure))) == kinds


def test_a_heat_map_is_not_cut_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (figure,) = _draw(made_up(2, 9, style="heat map"), tmp_path, monkeypatch)

    check_figure_reaches_nowhere_outside(figure)


def _draw(result: AnalysisResult, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures = keep_figures(monkeypatch, analysis_figures)
    draw_analysis_plots(result, folder)
    return figures


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_figure_is_written_as_png_and_as_the_kind_asked_for(tmp_path: Path, kind: Any) -> None:
    first = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF-"}

    (path,) = draw_analysis_plots(made_up(1, 2), tmp_path, kind)

    assert path == tmp_path / f"plot.{kind}"
    assert {each.name for each in tmp_path.iterdir()} == {"plot.png", f"plot.{kind}"}
    for each in tmp_path.iterdir():
        assert each.read_bytes().startswith(first[each.suffix[1:]])


def test_a_vector_figure_that_fails_leaves_no_png(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(figure: Figure, output: Path) -> Path:
        save_figure(figure, output)
        raise ValueError("no")

    monkeypatch.setattr(analysis_figures, "save_figure", fail)

    assert draw_analysis_plots(made_up(1, 2), tmp_path, "svg") == []
    assert list(tmp_path.iterdir()) == []


def test_main_numbers_over_the_steps_are_a_curve_per_place_in_a_panel_per_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = keep_figures(monkeypatch, training_figures)
    result = made_up(2, 3)
    plot = result.plots[0]
    later = replace(result, values=result.values + 1)
    rows = [*make_curve_rows(later, plot, 20), *make_curve_rows(result, plot, 0)]

    draw_analysis_training(rows, plot, tmp_path / "training.png")

    (figure,) = figures
    check_figure_reaches_nowhere_outside(figure)
    titles = [axis.get_title().replace("\n", " ") for axis in figure.axes]
    assert titles == list(plot.shown.values())
    names = figure.axes[0].get_legend_handles_labels()[1]
    assert names == [f"layer {layer}" for layer in range(4)]
    line = figure.axes[1].lines[2]
    own = result.values[0, 1, 2, 0]
    np.testing.assert_array_equal(line.get_xydata(), [[0, own], [20, own + 1]])
    assert len({look[0] for look in curve_looks(figure.axes[0])}) == 4


@pytest.mark.parametrize("epochs", [(3,), (-1, 3)])
def test_a_study_draws_the_intervals_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: tuple[int, ...]
) -> None:
    figures = keep_figures(monkeypatch, study_figures)
    line = {epoch: StudyPoint(0.5, 0.4, 0.7) for epoch in epochs}

    draw_study_lines(
        {"a": {"one": line, "two": {3: StudyPoint(0.6)}}}, tmp_path / "lines.png", ylabel="CKA"
    )

    (figure,) = figures
    check_figure_reaches_nowhere_outside(figure)
    assert "95 % intervals over seeds" in figure.get_suptitle()
    (axis,) = figure.axes
    ends: set[float] = set()
    for each in axis.collections:
        corners = each.get_datalim(axis.transData).get_points()
        ends |= {*np.round(corners[:, 0 if len(epochs) == 1 else 1], 3).tolist()}
    assert {0.4, 0.7} <= ends
