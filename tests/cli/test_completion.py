"""`lightning completion`: what a shell offers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lightning_mllm.cli.commands import COMMANDS
from lightning_mllm.cli.main import main

BASH = shutil.which("bash")


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    main(["completion", shell])
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)

    assert all(word in text for command in COMMANDS for word in command.name.split())
    assert "lightning-mllm" in text


@pytest.mark.skipif(BASH is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("lightning ana", "analyze"),
        ("lightning data c", "check"),
        ("lightning completion f", "fish"),
        ("lightning fit --conf", "--config"),
        ("lightning fit --config mine/a", "mine/a.yaml"),
    ],
)
def test_bash_offers_what_can_follow(
    words: str, offered: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.yaml").touch()
    asked = f"COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}; _lightning_mllm"
    program = f"{script('bash', capsys)}\n{asked}\necho ${{COMPREPLY[@]}}"

    done = subprocess.run(
        [str(BASH), "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )

    assert done.stdout.split() == [offered]
