"""A recorded terminal shows what stays on it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pyte", reason="`make` installs it with the docs' packages")
from tests.support.record_terminal import COLUMNS, read_screen, record


def test_what_is_drawn_again_is_shown_as_it_is_left_and_what_scrolls_away_is_kept() -> None:
    bar = b"".join(b"\r\x1b[2K%d/3" % step for step in (1, 2, 3))
    many = b"".join(b"line %d\r\n" % number for number in range(100))

    lines = read_screen(b"\x1b[1mbold\x1b[0m\r\n" + bar + b"\r\n" + many).splitlines()

    assert lines == ["bold", "3/3", *(f"line {number}" for number in range(100))]


@pytest.mark.slow
def test_a_command_is_recorded_in_a_terminal_of_80_columns(tmp_path: Path) -> None:
    shown = record("lightning --help", tmp_path)

    assert shown.startswith("$ lightning --help\nusage: lightning")
    assert max(map(len, shown.splitlines())) <= COLUMNS
