from __future__ import annotations

from pathlib import Path

from lightning_mllm.study.engine.markdown import pictures_as_markdown


def test_a_report_shows_the_png_beside_a_figure_of_another_kind() -> None:
    pictures = [Path("study/figures/drift-post.mean.pdf"), Path("study/figures/slopes.png")]

    assert pictures_as_markdown(pictures, Path("study")) == [
        "![drift-post.mean](figures/drift-post.mean.png)",
        "![slopes](figures/slopes.png)",
    ]
