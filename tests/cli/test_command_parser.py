"""The sub-commands: all are listed, and neither help nor a mistake waits for torch."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from lightning_mllm.cli import commands
from lightning_mllm.cli.commands import COMMANDS
from lightning_mllm.cli.main import main
from tests.support.command_line import refusal

HEAVY = (
    "jsonargparse",
    "lightning",
    "matplotlib",
    "numpy",
    "rich",
    "torch",
    "transformers",
    "wandb",
    "yaml",
)


def test_the_help_lists_every_command_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])

    assert caught.value.code == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command.name} " in text
        assert command.help in text


def test_the_help_of_a_group_lists_its_own_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "--help"])

    text = capsys.readouterr().out
    assert "data check" in text and "data gqa-tasks" in text
    assert "tiny" not in text


def test_every_command_has_a_module_that_runs_it() -> None:
    for command in COMMANDS:
        assert callable(import_module(f"{commands.__name__}.{command.module}").run)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [(["fti"], "fit"), (["anlyze", "--config", "x"], "analyze"), (["data", "chekc"], "data check")],
)
def test_a_misspelt_command_is_answered_with_the_nearest_one(
    wrong: list[str], right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, wrong)

    assert f'Did you mean "{right}"?' in message
    assert "usage:" not in message


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--help"], 0), (["fti"], 2), (["data", "chekc"], 2), ([], 2)],
    ids=str,
)
def test_help_and_mistakes_import_nothing_heavy(arguments: list[str], status: int) -> None:
    program = f"""
import sys
from lightning_mllm.cli.main import main
try:
    main({arguments!r})
except SystemExit as ended:
    assert ended.code == {status}, ended.code
print(*(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stderr.splitlines()[-1] == ""
