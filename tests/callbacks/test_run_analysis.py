"""Analyses during a short real fit: when they run, what they leave, and that the fit does not feel them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mllm.analysis import AnswerLens, Bootstrap
from lightning_mllm.callbacks import RunAnalysis
from lightning_mllm.errors import ConfigError
from tests.callbacks.following import Run, make_run

NO_ANALYSIS: list[Any] = []


def lens(label: str = "") -> AnswerLens:
    return AnswerLens(correct_only=False, bootstrap=Bootstrap(resamples=10), top=1, label=label)


def folders(run: Run) -> set[str]:
    return {path.relative_to(run.folder / "analysis").as_posix() for path in run.folder.glob("analysis/*/*")}


def rows(run: Run, when: str) -> list[dict[str, str]]:
    with (run.folder / "analysis" / when / "rows.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory, tiny_llava: str) -> Run:
    run = make_run(tiny_llava, tmp_path_factory.mktemp("analysed"), [RunAnalysis(lens())])
    return run.fit().test()


def test_it_runs_before_training_at_each_epoch_and_after_the_test(analysed: Run) -> None:
    assert folders(analysed) == {
        f"{when}/answer_lens" for when in ("val-step0", "val-step2", "val-step4", "test-step4")
    }


def test_each_time_it_is_of_the_weights_at_hand(analysed: Run) -> None:
    numbers = [[row["reference_logprob"] for row in rows(analysed, f"val-step{k}/answer_lens")] for k in (0, 2, 4)]

    assert len(numbers[0]) == 8 * 3  # samples and layers
    assert numbers[0] != numbers[1] != numbers[2]


def test_the_fit_is_that_without_it(analysed: Run, tiny_llava: str, tmp_path: Path) -> None:
    alone = make_run(tiny_llava, tmp_path, NO_ANALYSIS).fit()

    for name, weights in alone.projector().items():
        assert torch.equal(weights, analysed.projector()[name]), name


def test_epochs_can_be_left_out_but_for_the_last(tiny_llava: str, tmp_path: Path) -> None:
    callback = RunAnalysis([lens(), lens("again")], every_n_epochs=5, before_training=False)

    run = make_run(tiny_llava, tmp_path, [callback]).fit()

    assert folders(run) == {"val-step4/answer_lens", "val-step4/again"}


@pytest.mark.parametrize(
    ("analyses", "options", "message"),
    [
        ([], {}, r"An analysis is needed.*found none"),
        ([lens(), lens()], {}, r"each with a name of its own; found answer_lens, answer_lens"),
        ([lens()], {"every_n_epochs": 0}, r"every_n_epochs must be at least 1, not 0"),
    ],
)
def test_what_can_not_be_is_refused(analyses: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunAnalysis(analyses, **options)
