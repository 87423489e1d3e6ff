from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from lightning_mllm.tracking.figures import study as study_figures
from lightning_mllm.tracking.figures.study import StudySlope, draw_study_slopes


def test_the_panels_of_a_slope_plot_have_one_upright_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []

    def keep(figure: Figure, output: Path) -> Path:
        figures.append(figure)
        return output

    monkeypatch.setattr(study_figures, "save_figure", keep)
    low = StudySlope("low", "leaves", "ft_proj", before=(0.5, 0.1), after=(0.4, 0.2))
    high = StudySlope("high", "leaves", "ft_proj", before=(0.5, 0.7), after=(0.6, 0.9))

    draw_study_slopes([low, high], tmp_path / "slopes.png", xlabel="Richness", ylabel="Macro-F1")

    one, two = (axis.get_ylim() for axis in figures[0].axes)
    assert one == two
    assert one[0] < 0.1 and one[1] > 0.9
