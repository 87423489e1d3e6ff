from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_mllm.progress import format_duration
from lightning_mllm.study.engine.cell_folder import CellState
from lightning_mllm.study.engine.main import run_study
from lightning_mllm.study.engine.plan import plan
from tests.study.conftest import Change, FakeLightning, folders_of


def test_a_dry_run_shows_the_plan_and_nothing_else(
    study: Change, fake: FakeLightning, capsys: pytest.CaptureFixture[str]
) -> None:
    run_study(study(dry_run=True), fake)
    assert not fake.calls
    assert not Path("studies").exists()
    assert "12 to do. Time: unknown until the first are done" in " ".join(
        capsys.readouterr().out.split()
    )

    fake.breaks = {"tiny.plantdoc.paper.ft_e2e.seed1": "in training"}
    run_study(study(), fake)
    capsys.readouterr()
    run_study(study(dry_run=True), fake)
    shown = " ".join(capsys.readouterr().out.split())
    assert "11 done, 1 to resume. Time: about 0 s, going by finished cells" in shown


def test_the_time_of_a_cell_is_that_of_the_finished_ones_that_are_the_most_alike(
    study: Change, fake: FakeLightning
) -> None:
    run_study(study(domains={"leaves": ["leaves.yaml"]}, seeds=[0]), fake)
    folders = folders_of(study())
    for name, seconds in {"zero_shot": 60, "paper.ft_proj": 600, "paper.ft_e2e": 1200}.items():
        path = folders[f"tiny.leaves.{name}.seed0"].done_file
        path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": seconds}))
    new = [folder for folder in folders.values() if folder.state is CellState.NEW]

    table = plan(new, list(folders.values()), jobs=2)

    # another seed of leaves and two of plantdoc, which has none of its own
    assert (
        table.caption
        == f"9 to do. Time: about {format_duration(3 * 1860 / 2)}, going by finished cells"
    )
