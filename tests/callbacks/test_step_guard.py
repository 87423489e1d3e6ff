"""Ctrl-C waits while a step changes the weights."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_mllm.callbacks.step_guard import StepGuard


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def guard() -> Iterator[StepGuard]:
    before = signal.getsignal(signal.SIGINT)
    guard = StepGuard()
    guard.start()
    yield guard
    guard.stop()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_waits_for_the_end_of_a_step(guard: StepGuard) -> None:
    guard.begin_update()
    press_ctrl_c()  # nothing happens

    with pytest.raises(KeyboardInterrupt):
        guard.let_go()


def test_ctrl_c_pressed_twice_does_not_wait(guard: StepGuard) -> None:
    guard.begin_update()
    press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()


def test_ctrl_c_outside_of_a_step_does_not_wait(guard: StepGuard) -> None:
    guard.begin_update()
    guard.let_go()

    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()


def test_processes_that_share_a_model_all_stop_at_the_end_of_a_step() -> None:
    said: list[int] = []

    def ask_all(own: int) -> int:
        said.append(own)
        return own

    guard = StepGuard()
    guard.start(ask_all)
    press_ctrl_c()  # outside of an update, too, it waits
    could_write = [guard.can_write]
    with pytest.raises(KeyboardInterrupt):
        guard.let_go()
    could_write.append(guard.can_write)
    assert could_write == [False, True]
    guard.stop()

    guard.start(ask_all)
    guard.let_go()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SIGTERMException):
        guard.let_go()
    guard.stop()

    guard.start(lambda own: 1)  # another process was stopped
    with pytest.raises(KeyboardInterrupt):
        guard.let_go()
    guard.stop()
    assert said == [1, 0, 2]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_who_answers_ctrl_c_by_now_keeps_it() -> None:
    before = signal.getsignal(signal.SIGINT)
    guard = StepGuard()
    guard.start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as Lightning does while it shuts down

    guard.stop()

    try:
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
