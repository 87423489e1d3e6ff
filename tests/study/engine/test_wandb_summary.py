from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mllm.study.engine.main import run_study
from lightning_mllm.study.projection.study import ProjectionStudyRichness
from lightning_mllm.tracking import loggers
from tests.study.conftest import Change, FakeLightning
from tests.support.fake_wandb import fake_wandb


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tables that were logged; logging fails while this has a "broken" in it."""
    tables: list[str] = []

    def log_table(_loggers: object, name: str, *_: object) -> None:
        if "broken" in tables:
            tables.clear()
            raise ConnectionError("no route to W&B")
        tables.append(name)

    monkeypatch.setattr(loggers, "log_table", log_table)
    return tables


def test_the_summary_of_a_finished_study_is_logged_once(
    study: Change, fake: FakeLightning, logged: list[str]
) -> None:
    fake.breaks = {"tiny.leaves.paper.ft_proj.seed0": "at once"}
    run_study(study(), fake)
    assert not logged
    run_study(study(), FakeLightning())
    assert logged == ["table1", "table2", "verdict"]

    run_study(study(), FakeLightning())

    assert len(logged) == 3


def test_a_summary_that_was_missed_is_logged_by_the_next_call(
    study: Change, fake: FakeLightning, logged: list[str]
) -> None:
    logged.append("broken")
    with pytest.raises(ConnectionError):
        run_study(study(), fake)
    assert not Path("studies/small/summary.json").exists()

    run_study(study(), FakeLightning())

    assert logged == ["table1", "table2", "verdict"]


def test_the_summary_of_other_results_is_another(
    study: Change, fake: FakeLightning, logged: list[str]
) -> None:
    run_study(study(), fake)

    run_study(study(resamples=2500), FakeLightning())

    assert len(logged) == 6


def test_the_summary_is_a_run_of_the_study_s_group_with_its_tables_and_figures(
    study: Change, fake: FakeLightning, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = fake_wandb(monkeypatch)

    run_study(study(wandb="offline", richness=ProjectionStudyRichness()), fake)

    (run,) = runs
    figures = {f"figures/{path.stem}" for path in Path("studies/small/figures").glob("*.png")}
    assert (run.options["group"], run.options["name"], run.finished) == (
        "small",
        "small-summary",
        True,
    )
    assert {"figures/slopes", "figures/richness"} <= figures
    assert {"table1", "table2", "verdict", *figures} <= run.keys
