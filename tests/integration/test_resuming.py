"""A fit that is stopped goes on as if nothing had happened, and a finished one can be prolonged."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mllm.cli.main import main
from lightning_mllm.models.module import MLLMModule
from tests.support.command_line import SMALL_DIGITS, isolate

STEPS = 3  # per epoch


@dataclass
class Runs:
    """Runs of one fit, of two epochs."""

    root: Path
    checkpoint: str

    def fit(self, name: str, *options: str) -> Path:
        """Begin a fit."""
        length = ("--trainer.limit_train_batches", str(STEPS), "--trainer.limit_val_batches", "2")
        main(
            [
                *("fit", "--model.checkpoint", self.checkpoint, *SMALL_DIGITS, *length),
                *("--trainer.log_every_n_steps", "1", "--trainer.max_epochs", "2"),
                *("--checkpointing.best", "val/loss"),
                *("--trainer.callbacks", "RepresentationDrift"),
                *("--model.scorers", '[{"class_path": "Likelihood"}]'),
                *("--trainer.run.root", str(self.root), "--trainer.run.name", name, *options),
            ]
        )
        return self.root / name


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_llava: str) -> Iterator[Runs]:
    """A fit that nothing has stopped, `whole`."""
    root = tmp_path_factory.mktemp("runs")
    runs = Runs(root, tiny_llava)
    with pytest.MonkeyPatch.context() as monkeypatch:
        isolate(monkeypatch, root)
        runs.fit("whole")
    yield runs


def rows(run: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    """The rows of a table without what depends on the clock, and without empty cells."""
    with (run / name).open(newline="") as file:
        found = list(csv.DictReader(file))
    kept = []
    for row in found:
        cells = {key: value for key, value in row.items() if value and "throughput" not in key}
        kept.append(cells)
    return kept


def content(run: Path, name: str = "last.ckpt") -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(run / "checkpoints" / name, weights_only=True)
    return checkpoint


def same(one: Any, other: Any) -> bool:
    """Whether two nested containers hold the same numbers, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def check_equal(run: Path, expected: Path) -> None:
    """Check that two runs have the same weights, optimiser and rows."""
    for name in ("last.ckpt", "best.ckpt"):
        one, other = content(run, name), content(expected, name)
        for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
            assert same(one[part], other[part]), (name, part)
    for name in ("metrics.csv", "drift.csv"):
        assert rows(run, name) == rows(expected, name)


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


class Interruption:
    """Presses Ctrl-C in the n-th call of a function, before or after its work."""

    def __init__(self, function: Callable[..., Any], call: int, after: bool) -> None:
        self.function, self.call, self.after = function, call, after
        self.calls = 0

    def method(self) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.call and not self.after:
                os.kill(os.getpid(), signal.SIGINT)
            result = self.function(*args, **kwargs)
            if self.calls == self.call and self.after:
                os.kill(os.getpid(), signal.SIGINT)
            return result

        return called


@pytest.mark.parametrize(
    ("owner", "name", "call", "after", "saved"),
    [
        (MLLMModule, "training_step", 3, False, 2),  # in the last step of an epoch
        (MLLMModule, "training_step", 4, True, 3),  # in the first one
        (torch.optim.AdamW, "step", 2, False, 2),  # while the weights change
        (torch.optim.AdamW, "step", 3, True, 3),
        (MLLMModule, "validation_step", 6, False, 6),  # 2 of the sanity check, 2 + 2
    ],
)
def test_wherever_ctrl_c_is_pressed_the_run_that_goes_on_equals_one_that_was_not_stopped(
    whole: Runs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    owner: Any,
    name: str,
    call: int,
    after: bool,
    saved: int,
) -> None:
    label = f"{name}-{call}-{after}"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(owner, name, Interruption(getattr(owner, name), call, after).method())
        whole.fit(label)

    stopped = whole.root / label
    assert content(stopped)["global_step"] == saved
    assert (status(stopped)["status"], status(stopped)["reason"]) == ("stopped", "Ctrl-C")
    assert f"lightning fit --resume {stopped}" in capsys.readouterr().out

    main(["fit", "--resume", str(stopped)])

    check_equal(whole.root / f"{label}-2", whole.root / "whole")
