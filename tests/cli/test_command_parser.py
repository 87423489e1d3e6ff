"""The sub-commands: all are listed, and neither help nor a mistake waits for torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

from lightning_mllm import __version__
from lightning_mllm.cli import commands
from lightning_mllm.cli.commands import COMMANDS
from lightning_mllm.cli.main import main
from tests.support.command_line import refusal

ROOT = Path(__file__).parents[2]
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


def test_ctrl_c_ends_with_its_own_code_and_a_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_mllm.cli.commands.command.Command.run", interrupted)
    with pytest.raises(SystemExit) as caught:
        main(["tiny"])

    assert caught.value.code == 130
    assert capsys.readouterr().err == "Stopped.\n"


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
    for module in {f"{commands.__name__}.{command.module}" for command in COMMANDS}:
        assert callable(import_module(module).run)


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


def test_the_version_names_what_the_program_stands_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"lightning-mllm {__version__} (")
    for package in ("lightning", "torch", "transformers"):
        assert f"{package} {version(package)}" in text


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        *((["--help"], 0), (["--version"], 0), (["fti"], 2), (["data", "chekc"], 2), ([], 2)),
        *((["completion", "bash"], None), (["configs", "--help"], 0)),
    ],
    ids=str,
)
def test_help_and_mistakes_import_nothing_heavy(arguments: list[str], status: int | None) -> None:
    allowed = {"rich", "yaml"} if arguments[:1] in (["completion"], ["configs"]) else set()
    program = f"""
import sys
from lightning_mllm.cli.main import main
code = None
try:
    main({arguments!r})
except SystemExit as ended:
    code = ended.code
assert code == {status}, code
print(*(name for name in {set(HEAVY) - allowed!r} if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stderr.splitlines()[-1] == ""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["tiny", "--help"], ["study", "--help"]], ids=str)
def test_what_needs_no_lightning_imports_none(arguments: list[str]) -> None:
    program = f"""
import sys
from lightning_mllm.cli.main import main
try:
    main({arguments!r})
except SystemExit as ended:
    assert ended.code == 0, ended.code
print(*(name for name in ("lightning", "torchmetrics", "peft", "wandb") if name in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, ""), done.stderr


@pytest.mark.parametrize("command", ["tiny", "study"])
def test_nothing_that_it_imports_asks_for_lightning(command: str) -> None:
    seen: set[str] = set()
    to_read = {f"lightning_mllm.cli.commands.{command}"}
    while to_read:
        seen |= to_read
        to_read = set().union(*map(imported_modules, to_read)) - seen

    assert f"lightning_mllm.{'models.tiny' if command == 'tiny' else 'study'}" in seen
    assert not {name for name in seen if name.partition(".")[0] == "lightning"}


def imported_modules(name: str) -> set[str]:
    """Return the modules that a module of this package imports when it is imported itself."""
    if not name.startswith("lightning_mllm"):
        return set()
    file = ROOT / name.replace(".", "/")
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    found = {name.rpartition(".")[0]}
    if not file.is_file():  # a name in a module
        return found
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found - {""}
