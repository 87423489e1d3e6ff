"""W&B runs that keep what is logged in memory, beneath Lightning's logger and ours."""

from __future__ import annotations

from typing import Any

import pytest
import wandb


class Config(dict[str, Any]):
    """The configuration of a run."""

    def update(self, *args: Any, allow_val_change: bool = False, **values: Any) -> None:
        super().update(*args, **values)


class FakeRun:
    """A run that `wandb.init` has returned.

    Attributes:
        options: What it was begun with.
        config: Its configuration.
        history: What was logged, a dict per call.
        finished: Whether it was closed.
    """

    def __init__(self, **options: Any) -> None:
        self.options, self.config, self.finished = options, Config(), False
        self.history: list[dict[str, Any]] = []

    @property
    def keys(self) -> set[str]:
        """All names under which something was logged."""
        return set().union(*self.history)

    def log(self, row: dict[str, Any]) -> None:
        self.history.append(dict(row))

    def finish(self) -> None:
        self.finished = True


def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """Let W&B begin fake runs, and return the list that they will be in."""
    runs: list[FakeRun] = []

    def begin(**options: Any) -> FakeRun:
        runs.append(FakeRun(**options))
        return runs[-1]

    monkeypatch.setattr(wandb, "init", begin)
    return runs
