from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lightning_mllm.errors import ConfigError
from lightning_mllm.study.engine.main import run_study
from tests.study.conftest import Change, FakeLightning
from tests.support.weight_files import write_checkpoint


def test_cells_of_a_checkpoint_that_was_trained_again_are_refused_and_those_of_a_moved_one_are_not(
    study: Change, fake: FakeLightning
) -> None:
    write_checkpoint(Path("checkpoints/tiny"), 1.0)
    run_study(study(), fake)
    shutil.copytree("checkpoints/tiny", "moved")

    again = FakeLightning()
    assert not run_study(study(checkpoints={"tiny": "moved"}), again)
    assert not again.calls
    write_checkpoint(Path("checkpoints/tiny"), 2.0)
    with pytest.raises(ConfigError, match=r"12 of 12 cells .* the checkpoint"):
        run_study(study(), again)
