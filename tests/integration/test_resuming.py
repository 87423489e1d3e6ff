"""A fit that is stopped goes on as if nothing had happened, and a finished one can be prolonged."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.optim import SGD

from lightning_mllm.cli import stages
from lightning_mllm.cli.main import main
from lightning_mllm.cli.resumed_fit import resumed_fit_arguments
from lightning_mllm.errors import ConfigError, NotFiniteError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.optimisation.schedule import LearningRates, Schedule
from tests.support.command_line import SMALL_DIGITS, files_below, isolate, refusal

STEPS = 3  # per epoch
ADAM = import_module("torch.optim.adam")


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
    """Sends a signal in the n-th call of a function, before or after its work."""

    def __init__(
        self, function: Callable[..., Any], call: int, after: bool, sent: int = signal.SIGINT
    ) -> None:
        self.function, self.call, self.after, self.sent = function, call, after, sent
        self.calls = 0

    def method(self) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.call and not self.after:
                os.kill(os.getpid(), self.sent)
            result = self.function(*args, **kwargs)
            if self.calls == self.call and self.after:
                os.kill(os.getpid(), self.sent)
            return result

        return called


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """Lightning ignores SIGINT from the first one on, also for whoever comes later."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def slow(*values: Any) -> Any:
    """Return a case that runs with the slow tests."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("owner", "name", "call", "after", "saved"),
    [
        (ADAM, "adam", 4, False, 2),  # half of the weights are changed
        slow(ADAM, "adam", 6, True, 3),  # at the end of an epoch
        slow(MLLMModule, "training_step", 3, False, 2),
        slow(MLLMModule, "training_step", 4, True, 3),
        slow(MLLMModule, "validation_step", 4, False, 3),  # 2 of the sanity check, 2
        slow(MLLMModule, "validation_step", 5, True, 6),
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
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(owner, name, Interruption(getattr(owner, name), call, after).method())
        whole.fit(label)

    stopped = whole.root / label
    assert content(stopped)["global_step"] == saved
    assert (status(stopped)["status"], status(stopped)["reason"]) == ("stopped", "Ctrl-C")
    said = capsys.readouterr()
    assert f"lightning fit --resume {stopped}" in said.out
    assert said.err.endswith("Stopped.\n") and ended.value.code == 130

    main(["fit", "--resume", str(stopped)])

    check_equal(whole.root / f"{label}-2", whole.root / "whole")


@pytest.mark.slow
def test_a_terminated_fit_goes_on_as_if_nothing_had_happened(
    whole: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Interruption(MLLMModule.training_step, 4, after=False, sent=signal.SIGTERM)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(MLLMModule, "training_step", step.method())
        whole.fit("terminated")

    stopped = whole.root / "terminated"
    assert content(stopped)["global_step"] == 4
    assert (status(stopped)["status"], status(stopped)["reason"]) == ("stopped", "SIGTERM")

    main(["fit", "--resume", str(stopped)])

    check_equal(whole.root / "terminated-2", whole.root / "whole")


@pytest.mark.slow
def test_a_fit_that_ends_within_an_epoch_is_prolonged_with_the_rest_of_the_epoch(
    whole: Runs,
) -> None:
    constant = ("--model.decay", "constant", "--model.warmup_ratio", "0")
    expected = whole.fit("constant", *constant)
    whole.fit("short", *constant, "--trainer.max_steps", "2")

    main(["fit", "--resume", str(whole.root / "short"), "--trainer.max_steps", "6"])

    assert same(content(whole.root / "short-2")["state_dict"], content(expected)["state_dict"])


@pytest.mark.slow
def test_an_error_keeps_the_last_step_and_a_diverged_model_keeps_the_last_checkpoint(
    whole: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(error: Exception) -> Callable[..., Any]:
        right, calls = MLLMModule.training_step, iter(range(100))

        def step(self: Any, batch: Any, index: int) -> Any:
            if next(calls) == 4:
                raise error
            return right(self, batch, index)

        return step

    wrong = {"error": RuntimeError("out of luck"), "diverged": NotFiniteError("is not finite")}
    for name, error in wrong.items():
        with monkeypatch.context() as patch, pytest.raises((RuntimeError, SystemExit)):
            patch.setattr(MLLMModule, "training_step", fails(error))
            whole.fit(name)

    assert content(whole.root / "error")["global_step"] == 4
    assert content(whole.root / "diverged")["global_step"] == 3  # the end of the epoch
    assert status(whole.root / "error")["reason"] == "RuntimeError: out of luck"
    assert status(whole.root / "diverged")["status"] == "failed"


def test_the_best_checkpoint_is_that_of_the_best_row(whole: Runs) -> None:
    run = whole.root / "whole"
    losses = {int(row["step"]): float(row["val/loss"]) for row in rows(run) if "val/loss" in row}

    assert len(losses) == 2
    assert content(run, "best.ckpt")["global_step"] == min(losses, key=losses.__getitem__)


@pytest.mark.slow
def test_a_finished_run_is_prolonged_and_begins_with_all_it_had(
    whole: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    main(["fit", "--resume", str(whole.root / "whole"), "--max_epochs", "3"])

    before, after = whole.root / "whole", whole.root / "whole-2"
    assert rows(after)[: len(rows(before))] == rows(before)
    assert {row["step"] for row in rows(after)[len(rows(before)) :]} == {"7", "8", "9"}
    assert rows(after, "drift.csv")[:-1] == rows(before, "drift.csv")
    assert content(after)["global_step"] == 9
    longer = Schedule(LearningRates(), 0.03, "cosine", 9).scheduler(SGD([torch.zeros(1)], 1e-3))
    rate = next(row["lr-AdamW/projector"] for row in rows(after) if row["step"] == "7")
    assert float(rate) == pytest.approx(1e-3 * longer.lr_lambdas[0](6))
    assert "prolonged from 6 to 9 steps" in caplog.text
    assert status(after)["continues"] == str(before / "checkpoints" / "last.ckpt")
    assert status(after)["status"] == "finished"


@pytest.mark.slow
def test_a_fit_stopped_in_its_test_keeps_the_checkpoints_with_nothing_left_to_train(
    whole: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped, expected = whole.root / "tested", whole.root / "whole"
    shutil.copytree(expected, stopped)
    (stopped / "status.json").write_text('{"status": "stopped"}')

    monkeypatch.setattr(
        MLLMModule, "test_step", Interruption(MLLMModule.test_step, 1, after=False).method()
    )
    names = ("--trainer.run.name", "tested", "--test_after", "true")

    with pytest.raises(SystemExit):
        main(["fit", "--resume", str(stopped), *names])

    run = whole.root / "tested-2"
    assert f"from step 6: lightning fit --resume {run}" in capsys.readouterr().out
    assert status(run)["status"] == "stopped"
    for name in ("last.ckpt", "best.ckpt"):
        assert same(content(run, name), content(expected, name))
    assert rows(run) == rows(expected)
    assert not (run / "never_moved.csv").exists()


def test_a_run_that_goes_on_points_to_the_one_before_and_the_one_before_to_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = tmp_path / "a", tmp_path / "a-2"
    for run in (first, second):
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").touch()
    last = first / "checkpoints" / "last.ckpt"
    last.touch()
    said = {"status": "stopped", "step": 7, "continues": str(last)}
    (second / "status.json").write_text(json.dumps(said))

    resumed_fit_arguments(["--resume", str(first)])
    assert f"{second} already goes on from this run (stopped, step 7)" in caplog.text
    with pytest.raises(ConfigError, match=rf"lightning fit --resume {first}\."):
        resumed_fit_arguments(["--resume", str(second)])


def test_a_run_is_resumed_beside_itself_from_within_its_folder(
    whole: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole.root / "whole")

    arguments = resumed_fit_arguments(["--resume", ".", "--max_epochs", "3"])

    assert arguments[arguments.index("--trainer.run.root") + 1] == str(whole.root.resolve())


def test_a_run_says_what_it_ran_with(whole: Runs) -> None:
    environment = json.loads((whole.root / "whole" / "environment.json").read_text())

    assert environment["versions"]["torch"] == torch.__version__
    assert {"python", "lightning", "lightning-mllm", "transformers"} <= environment[
        "versions"
    ].keys()
    assert "git" not in environment  # the folder is no git tree


def test_what_can_not_be_resumed_is_refused_with_the_way_out(
    whole: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = whole.root / "whole"
    early = tmp_path / "early"
    early.mkdir()
    (early / "config.yaml").touch()

    (tmp_path / "mine.yaml").write_text(f"resume: {run}")
    folders = set(whole.root.iterdir())

    shorter = refusal(capsys, ["fit", "--resume", run, "--max_epochs", "1"])
    assert "may become longer, but not shorter" in shorter
    assert set(whole.root.iterdir()) == folders
    assert f"lightning fit --resume {run}" in refusal(
        capsys, ["fit", *SMALL_DIGITS, "--model.checkpoint", whole.checkpoint, "--config=mine.yaml"]
    )
    assert "--max_epochs" in refusal(capsys, ["fit", "--resume", run])
    assert "whole" in refusal(capsys, ["fit", "--resume", run.with_name("hole")])
    assert f"fit --config {early}/config.yaml" in refusal(capsys, ["fit", f"--resume={early}"])


@pytest.mark.parametrize(
    "wrong",
    [
        ("--ckpt_path", "none.ckpt"),
        ("--trainer.strategy", "fsdp"),
        slow(("--model.policy", "ZeroShot")),
        slow(("--checkpointing.best", "val/los:min")),
    ],
)
def test_a_refused_fit_leaves_no_folder(
    tiny_llava: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, wrong: tuple[str, str]
) -> None:
    refusal(capsys, ["fit", "--model.checkpoint", tiny_llava, *SMALL_DIGITS, *wrong])

    assert not files_below(tmp_path)


def test_a_config_keeps_what_another_machine_resolves_to_something_else(
    tiny_llava: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SCORES", "Likelihood")
    monkeypatch.setenv("CHIP", "auto")
    for root in ("here", "there"):
        shutil.copytree(tiny_llava, tmp_path / root / "instructed")
    monkeypatch.setattr(stages, "WEIGHTS", tmp_path / "here")
    (tmp_path / "mine.yaml").write_text("model: {checkpoint: '${testbed:instructed}'}")
    chip = ("--trainer.accelerator", "${oc.env:CHIP}")
    options = (*SMALL_DIGITS, "--trainer.limit_val_batches", "1", *chip)

    main(["validate", "--config", "mine.yaml", "--model.scorers", "${oc.env:SCORES}", *options])

    saved = Path("runs", "run", "config.yaml")
    config = yaml.safe_load(saved.read_text())
    assert config["model"]["checkpoint"] == "${testbed:instructed}"
    assert config["trainer"]["accelerator"] == "${oc.env:CHIP}"
    assert config["trainer"]["strategy"] == "auto"  # the same word, but not from there
    monkeypatch.setattr(stages, "WEIGHTS", tmp_path / "there")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["validate", "--config", str(saved), "--print_config"])
    again = yaml.safe_load(capsys.readouterr().out)
    assert again["model"]["checkpoint"] == str(tmp_path / "there" / "instructed")
    assert status(saved.parent)["command"] == "validate"
