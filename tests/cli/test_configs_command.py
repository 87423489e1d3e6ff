"""`lightning configs`: what it copies, and that it loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mllm.cli.config_files import SHIPPED, shipped_config_names
from lightning_mllm.cli.main import main
from tests.support.command_line import CONFIGS, files_below, refusal
from tests.support.shipped_configs import shipped_yaml


def test_all_configs_are_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs", str(tmp_path / "mine")])
    main(["configs", str(tmp_path / "mine")])  # again: nothing differs

    assert files_below(tmp_path / "mine") == files_below(CONFIGS)
    first, start, again = capsys.readouterr().out.splitlines()
    assert "files are in" in first and "quickstart.yaml" in start
    assert again.endswith("already; nothing was copied.")


def test_a_changed_file_is_kept_unless_the_user_says_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / "quickstart.yaml"
    changed.write_text("mine")

    message = refusal(capsys, ["configs", tmp_path])

    assert "1 file differs" in message and "--overwrite" in message
    assert files_below(tmp_path) == {"quickstart.yaml"} and changed.read_text() == "mine"

    main(["configs", str(tmp_path), "--overwrite"])
    assert changed.read_text() != "mine"
    assert "1 of them replaced" in capsys.readouterr().out


def test_the_package_has_the_configs_of_the_repository() -> None:
    assert SHIPPED.resolve() == CONFIGS.resolve()
    assert set(shipped_config_names()) == shipped_yaml()
