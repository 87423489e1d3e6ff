from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from lightning_mllm import progress
from lightning_mllm.progress import format_duration, show_progress, track


def test_tracking_yields_every_item_and_leaves_no_bar() -> None:
    assert list(track(range(5), "counting")) == [0, 1, 2, 3, 4]
    assert not progress._DISPLAY.tasks


def test_nothing_to_do_has_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "show_progress", None)
    assert list(track([], "counting")) == []


def test_bars_are_gone_after_an_error() -> None:
    with pytest.raises(ValueError, match="in the block"), show_progress("a"), show_progress("b", 3):
        raise ValueError("in the block")
    assert not progress._DISPLAY.tasks and not progress._DISPLAY.live.is_started


def test_where_there_is_no_terminal_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("ab", "counting")) == ["a", "b"]
    assert capsys.readouterr().out == ""


def test_where_there_is_no_terminal_a_line_in_the_log_says_how_far_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    with caplog.at_level(logging.INFO), show_progress("reading", 4) as bar:
        bar.advance(2)
    assert caplog.messages == ["reading: 2/4 · 0 s left"]


def test_only_the_first_process_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(progress, "console", terminal)
    monkeypatch.setattr(progress._DISPLAY.live, "console", terminal)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with show_progress("reading", 4):
        assert not progress._DISPLAY.live.is_started
    monkeypatch.delenv("LOCAL_RANK")
    with show_progress("reading", 4):
        assert progress._DISPLAY.live.is_started


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.7, "1 min"), (3570, "1 h 0 min"), (4800, "1 h 20 min")],
)
def test_durations_have_the_unit_that_a_person_would_use(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_the_time_left_counts_down_and_ignores_what_was_done_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("lightning_mllm.progress.time.monotonic", lambda: now[0])
    with show_progress("training", 10, done=6) as bar:
        assert not bar.describe_time_left()
        now[0] = 10
        bar.advance()
        assert bar.describe_time_left() == "30 s left"
        now[0] = 14
        assert bar.describe_time_left() == "26 s left"
        now[0] = 900  # one item takes long: it is still one item
        assert bar.describe_time_left() == "20 s left"
        bar.advance(3)
        assert not bar.describe_time_left()
