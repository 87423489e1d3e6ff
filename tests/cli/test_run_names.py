"""A run that evaluates another one is named after it and after the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mllm.cli.run_names import name_after_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "leaves-2").mkdir()
    for name in ("config.yaml", "status.json"):
        (tmp_path / "leaves-2" / name).write_text("{}")
    return tmp_path / "leaves-2"


@pytest.mark.parametrize("given", [("--config", "{}"), ("--config={}",), ("-c", "{}")])
def test_the_new_run_is_named_after_the_one_whose_config_is_given(
    run: Path, given: tuple[str, ...]
) -> None:
    typed = [each.format(run / "config.yaml") for each in given]

    named = name_after_run("test", [*typed, "--trainer.run.name", "mine"])

    assert named == [*typed, "--trainer.run.name=leaves-2-test", "--trainer.run.name", "mine"]


def test_a_name_that_says_the_command_is_kept(run: Path) -> None:
    tested = run.rename(run.with_name("leaves-test"))

    named = name_after_run("test", ["--config", str(tested / "config.yaml")])

    assert named[-1] == "--trainer.run.name=leaves-test"


def test_a_config_of_ones_own_says_the_name(run: Path) -> None:
    (run / "status.json").unlink()
    typed = ["--config", str(run / "config.yaml"), "--config", "other.yaml"]

    assert name_after_run("test", typed) == typed
