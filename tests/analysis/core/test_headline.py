"""The main numbers of a result are few, readable, and there for every analysis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightning_mllm.analysis.alignment.headline import make_alignment_headline
from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.knockout.headline import make_flow_headline
from lightning_mllm.analysis.knockout.sweep import Sweep
from lightning_mllm.analysis.lens.headline import make_lens_headline
from lightning_mllm.analysis.skipping.headline import make_skipping_headline
from lightning_mllm.statistics.interval import STATISTICS

NAN = float("nan")


@pytest.mark.parametrize(
    ("statistics", "text"),
    [
        ((-61.23, -65.04, -57.36, 96), "-61.2 [-65.0, -57.4]"),
        ((0.731, 0.69, 0.772, 96), "0.73 [0.69, 0.77]"),
        ((0.0123, 0.01, 0.02, 96), "0.012 [0.010, 0.020]"),
        ((0.5, NAN, NAN, 96), "0.50"),
        ((NAN, NAN, NAN, NAN), "-"),
    ],
)
def test_a_number_has_the_decimals_of_its_size_and_its_interval(
    statistics: tuple[float, ...], text: str
) -> None:
    assert format_estimate(np.array(statistics)) == text


def test_a_number_of_no_samples_has_a_dash() -> None:
    assert format_count(np.array([NAN] * 4)) == "-"


def result(headline: Headline | None = None) -> AnalysisResult:
    coords: dict[str, tuple[Any, ...]] = {
        "kind": ("all",),
        "layer": tuple(range(12)),
        "statistic": STATISTICS,
    }
    values = np.zeros((1, 12, 4))
    return AnalysisResult("mine", values, tuple(coords), coords, 3, {}, headline=headline)


def test_an_analysis_that_names_no_main_numbers_shows_the_first_rows_of_its_table() -> None:
    numbers = result().main_numbers()

    assert numbers.columns == ("layer", "value", "N")  # not the axis of a single coordinate
    assert numbers.rows[0] == ("0", "0.000 [0.000, 0.000]", "0")
    assert len(numbers.rows) == 8 and numbers.caption == "8 of 12 rows."


def test_one_that_names_some_shows_those() -> None:
    assert result(own := Headline("Mine.")).main_numbers() is own


def test_a_sweep_shows_the_window_in_which_each_block_changes_most() -> None:
    windows = np.array([[0, 0, 2], [1, 0, 3]])
    sweep = Sweep(("a->b", "c->d"), windows, np.zeros(0, dtype=int), "centre", (0, 1))
    values = np.full((2, 2, 4), NAN)
    values[0] = [[-1, -2, 0, 5], [-30, -40, -20, 5]]

    rows = make_flow_headline(values, sweep.blocks, sweep).rows

    assert rows[0] == ("a->b", "0-2", "-30.0 [-40.0, -20.0]", "5")
    assert rows[1] == ("c->d", "-", "blocks nothing", "-")


def test_a_lens_shows_from_where_on_one_spelling_of_the_answer_leads() -> None:
    values = np.full((1, 2, 4, 2, 4), NAN)
    values[0, :, :, 1, 0] = [[0, 5, 0, 3], [9, 9, 2, 0]]  # median ranks
    values[0, :, -1, 0] = [[10, 8, 12, 7], [80, 70, 90, 7]]

    rows = make_lens_headline(values, ["all"], [0, 1, 2, 3]).rows

    assert rows == (("all", "2", "80.0 [70.0, 90.0]", "7"),)
    assert make_lens_headline(values[:, :, :0], ["all"], []).rows == ()


def test_a_lens_without_an_answer_of_words_says_of_no_layer_that_it_leads() -> None:
    values = np.full((1, 2, 4, 2, 4), NAN)

    assert make_lens_headline(values, ["all"], [0, 1, 2, 3]).rows[0][1] == "-"


def test_skipping_shows_the_share_before_the_accuracy_falls() -> None:
    values = np.full((1, 1, 3, 5, 4), NAN)
    values[0, 0, :, 0] = [[90, 85, 95, 40], [89, 84, 94, 40], [50, 40, 60, 40]]
    values[0, 0, :, 1, 2] = [0, 1, -20]  # ends of the change
    values[0, 0, :, 2] = [[100, 100, 100, 40], [80, 80, 80, 40], [60, 60, 60, 40]]
    coords = {"computation": ("ffn",), "start": ("0",), "percent": (0.0, 50.0, 100.0)}

    rows = make_skipping_headline(values, coords).rows

    assert rows == (("ffn", "0", "50", "89.0 [84.0, 94.0]", "80.0 [80.0, 80.0]", "40"),)


def test_alignment_shows_its_scores() -> None:
    score = {"value": 0.25, "low_95": 0.2, "high_95": 0.3, "n": 16}

    rows = make_alignment_headline({"all": {"ima_input avg": score}}).rows

    assert rows == (("ima_input avg", "all", "0.25 [0.20, 0.30]", "16"),)
