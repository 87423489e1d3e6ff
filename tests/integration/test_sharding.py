"""Fits under `fsdp2` with 2 and 3 processes are those of one process with the same batches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from lightning_mllm.cli.main import main
from tests.conftest import FamilyBuilder
from tests.support.command_line import isolate
from tests.support.sharded_fits import CASES, HALF, run_case, single

pytestmark = pytest.mark.slow

TIMEOUT = 900  # seconds for all cases; a minute or two on quiet cores
EQUAL = 1e-5  # metrics of two numbers of processes
UNLIKE = ("throughput/", "epoch_seconds")  # metrics that say how fast it went

Content = dict[str, Any]


@pytest.fixture(scope="module")
def checkpoints(tiny_family: FamilyBuilder) -> str:
    """Name -> folder of the tiny checkpoints, as JSON."""
    return json.dumps({name: tiny_family(name) for name in {c.checkpoint for c in CASES.values()}})


@dataclass(frozen=True)
class Alone:
    """What one process makes of the cases.

    Attributes:
        folder: Where it is written.
    """

    folder: Path

    def fit(self, name: str) -> Content:
        """Run a case, once."""
        if not (self.folder / f"{name}.pt").exists():
            run_case(name, self.folder, processes=1)
        return _read(self.folder, name)


@pytest.fixture(scope="module")
def alone(checkpoints: str, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder = tmp_path_factory.mktemp("alone")
    (folder / "checkpoints.json").write_text(checkpoints)
    return Alone(folder)


@pytest.fixture(scope="module", params=[2, 3], ids=lambda number: f"{number} processes")
def together(
    checkpoints: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder with what several processes made of all cases, in one launch."""
    folder = tmp_path_factory.mktemp(f"together-{request.param}")
    (folder / "checkpoints.json").write_text(checkpoints)
    many = ("torch.distributed.run", "--standalone", "--nproc_per_node", str(request.param))
    output = folder / "output"
    work = ("-m", "tests.support.sharded_fits", str(folder))
    with launched(*many, *work, output=output) as process:
        wait_for(process, output)
    return folder


@contextmanager
def launched(module: str, *arguments: str, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module that starts processes; none of them outlives the block."""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=output.parent,
            env={**environment, "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, which can be ended as a whole
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # there is none left
            os.killpg(process.pid, signal.SIGKILL)  # one that waits for others ignores SIGTERM
        process.wait()


def wait_for(process: subprocess.Popen[bytes], output: Path, code: int = 0) -> None:
    """Wait for the end of a launched module."""
    assert process.wait(TIMEOUT) == code, output.read_text()[-5000:]


@pytest.mark.parametrize("name", CASES)
def test_processes_with_shards_reach_what_one_process_reaches(
    name: str, together: Path, alone: Alone
) -> None:
    found, expected = _read(together, name), alone.fit(single(name))

    assert found["fingerprint"] == expected["fingerprint"]
    assert found["state"].keys() == expected["state"].keys()
    _assert_near(found, expected, CASES[name].tolerance)
    steps = len(found["losses"])
    assert found["losses"] == pytest.approx(
        expected["losses"][-steps:], abs=50 * CASES[name].tolerance
    )
    if CASES[name].validates:
        known = {key for key in expected["metrics"] if not key.startswith(UNLIKE)}
        assert {"val/loss", "test/loss", "val/likelihood/accuracy"} <= known
        for key in known:
            assert found["metrics"][key] == pytest.approx(expected["metrics"][key], abs=EQUAL), key


@pytest.mark.parametrize("name", ["muon_resumed", "resumed"])
def test_a_fit_that_goes_on_is_bit_for_bit_the_one_that_never_stopped(
    name: str, together: Path
) -> None:
    resumes = CASES[name].resumes
    assert resumes is not None

    _assert_near(_read(together, name), _read(together, resumes), 0)


@pytest.mark.parametrize("name", ["bfloat16", "bfloat16_lora", "deepstack", "skipping", "tied"])
def test_shards_train_as_ddp_does(name: str, together: Path) -> None:
    found, expected = _read(together, name), _read(together, f"{name}_ddp")

    _assert_near(found, expected, 5e-6)


def test_a_checkpoint_of_shards_is_one_of_one_process(together: Path, alone: Alone) -> None:
    alone.fit("e2e")  # writes its own
    file = f"step={HALF}.ckpt"
    ours, theirs = (
        torch.load(folder / "e2e" / file, weights_only=True) for folder in (together, alone.folder)
    )

    assert _describe(ours) == _describe(theirs)
    for own, other in zip(ours["optimizer_states"], theirs["optimizer_states"], strict=True):
        torch.testing.assert_close(own["state"], other["state"], atol=1e-6, rtol=1e-3)


def test_the_command_line_stops_together_and_goes_on_with_other_processes(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(monkeypatch, tmp_path)
    data = ("--data", "Digits", "--data.init_args.batch_size", "4")
    model = ("--model.checkpoint", tiny_llava, "--model.policy", "ProjectorAndLLM")
    schedule = ("--model.warmup_ratio", "0", "--model.decay", "constant")
    options = ("--trainer.max_epochs", "99", "--trainer.limit_val_batches", "0")
    fit = ["fit", *model, *schedule, *data, *options, "--trainer.accelerator", "cpu"]
    fit += ["--trainer.log_every_n_steps", "1", "--trainer.run.root", "."]
    two = ("--trainer.devices", "2", "--trainer.strategy", "fsdp2")
    output, metrics = tmp_path / "output", tmp_path / "stopped" / "metrics.csv"

    command = ("lightning_mllm", *fit, *two, "--trainer.run.name", "stopped")
    with launched(*command, output=output) as process:
        end = time.monotonic() + TIMEOUT
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
            assert process.poll() is None and time.monotonic() < end, output.read_text()[-5000:]
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)  # to the first process only
        process.wait(TIMEOUT)
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    assert step > 0
    status = json.loads((tmp_path / "stopped" / "status.json").read_text())
    assert (status["status"], status["reason"]) == ("stopped", "SIGTERM")
    assert not list(tmp_path.rglob("*.part"))

    more = str(step + 2)
    once = [*fit, "--trainer.max_steps", more]
    main([*once, "--trainer.run.name", "alone"])
    main([*once, "--trainer.run.name", "resumed", "--ckpt_path", str(last)])

    opened = [*model, "--ckpt_path", str(last)]
    trial = ["--trainer.accelerator", "cpu", "--trainer.limit_test_batches", "1"]
    main(["test", *opened, *data, *trial, "--trainer.run.root", ".", "--trainer.run.name", "test"])
    main(["export", *opened, "--output", "exported"])
    trained = torch.load(last, weights_only=True)["state_dict"]
    exported = AutoModelForImageTextToText.from_pretrained("exported", dtype=torch.float32)
    found = dict(exported.named_parameters())
    for name, tensor in trained.items():
        torch.testing.assert_close(found[name].detach(), tensor, msg=name)

    weights = []
    for run in ("alone", "resumed"):
        content = torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)
        weights.append(content["state_dict"])
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=0, msg=name)


def _describe(content: Any) -> Any:
    """Return the structure of a checkpoint: keys, types and shapes."""
    if isinstance(content, torch.Tensor):
        return (tuple(content.shape), content.dtype)
    if isinstance(content, dict):
        return {key: _describe(value) for key, value in content.items() if key != "callbacks"}
    if isinstance(content, list | tuple):
        return [_describe(value) for value in content]
    return type(content)


def _read(folder: Path, name: str) -> Content:
    content: Content = torch.load(folder / f"{name}.pt", weights_only=True)
    return content


def _assert_near(found: Content, expected: Content, tolerance: float) -> None:
    for name, tensor in expected["state"].items():
        torch.testing.assert_close(found["state"][name], tensor, atol=tolerance, rtol=0, msg=name)
