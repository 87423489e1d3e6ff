from __future__ import annotations

from PIL import Image

from lightning_mllm.tracking.figures import run as figures
from tests.callbacks.conftest import Study


def test_the_curve_is_drawn_in_the_folder_of_the_run(study: Study) -> None:
    with Image.open(study.folder / "learning_curve.png") as picture:
        assert len(picture.convert("RGB").getcolors(maxcolors=10**6) or []) > 50


def test_its_data_begin_before_training_and_end_with_the_test(study: Study) -> None:
    curves = figures._read_curves(study.folder / "metrics.csv")

    assert set(curves["val/likelihood/accuracy"]) == {0, 2, 4}
    assert set(curves["zero_shot/generation/macro_f1"]) == {0}
    assert set(curves["test/likelihood/accuracy"]) == {4}
