"""Training that was stopped and resumed ends, bit for bit, where training without a stop ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_mllm.data import Digits
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.checkpoint import save_projector
from lightning_mllm.models.freeze import FreezePolicy, Lora, ProjectorOnly
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.optimisation.schedule import LearningRates
from lightning_mllm.models.tiny import build_tiny_checkpoint
from lightning_mllm.run import Run
from lightning_mllm.trainer import Trainer


class Crash(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("power cut")


def _fit(
    checkpoint: str,
    folder: Path,
    policy: FreezePolicy,
    *callbacks: Callback,
    model_options: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> MLLMModule:
    module = MLLMModule(checkpoint, policy=policy, scorers=(), **model_options)
    trainer = Trainer(
        run=Run(root=str(folder), wandb="disabled"),
        max_epochs=2,
        limit_train_batches=6,
        limit_val_batches=1,
        enable_progress_bar=False,
        callbacks=[ModelCheckpoint(every_n_train_steps=4, save_last=True), *callbacks],
    )
    torch.manual_seed(7)
    trainer.fit(module, datamodule=Digits(checkpoint=checkpoint, batch_size=4), **options)
    return module


@dataclass(frozen=True)
class Whole:
    """A fit that was not stopped."""

    module: MLLMModule
    last: Path


WholeFit = Callable[[FreezePolicy], Whole]


@pytest.fixture(scope="module")
def whole(tiny_llava: str, tmp_path_factory: pytest.TempPathFactory) -> WholeFit:
    """A function from a policy to its fit, which tests only read."""

    @cache
    def fit(policy: FreezePolicy) -> Whole:
        folder = tmp_path_factory.mktemp("whole")
        module = _fit(tiny_llava, folder, policy)
        return Whole(module, folder / "run" / "checkpoints" / "last.ckpt")

    return fit


@pytest.mark.parametrize("policy", [ProjectorOnly(), Lora(rank=2, dropout=0.5)], ids=str)
@pytest.mark.parametrize("crash_at", [5, 10])  # in the first epoch, and in the second
def test_resuming_equals_never_stopping(
    tiny_llava: str, tmp_path: Path, whole: WholeFit, policy: FreezePolicy, crash_at: int
) -> None:
    expected = whole(policy).module.state_dict()

    with pytest.raises(RuntimeError, match="power cut"):
        _fit(tiny_llava, tmp_path / "stopped", policy, Crash(crash_at))
    last = tmp_path / "stopped" / "run" / "checkpoints" / "last.ckpt"
    resumed = _fit(tiny_llava, tmp_path / "resumed", policy, ckpt_path=last).state_dict()

    assert expected.keys() == resumed.keys()
    for name, weights in expected.items():
        assert torch.equal(weights, resumed[name]), name


def test_resuming_under_another_schedule_is_refused(
    tiny_llava: str, tmp_path: Path, whole: WholeFit
) -> None:
    with pytest.raises(ConfigError, match=r"learning_rates\.projector was 0\.001 and is 0\.5"):
        _fit(
            tiny_llava,
            tmp_path,
            ProjectorOnly(),
            model_options={"learning_rates": LearningRates(projector=0.5)},
            ckpt_path=whole(ProjectorOnly()).last,
        )


@pytest.mark.parametrize(
    "other", [Lora(rank=4), Lora(rank=1, alpha=2.0), Lora(rank=1, target="vision")], ids=str
)
def test_a_checkpoint_of_other_adapters_is_refused(
    tiny_llava: str, tmp_path: Path, whole: WholeFit, other: FreezePolicy
) -> None:
    last = whole(Lora(rank=1)).last

    with pytest.raises(CheckpointError, match="was trained under Lora"):
        _fit(tiny_llava, tmp_path, other, ckpt_path=last)


def test_a_checkpoint_belongs_to_the_projector_it_was_trained_beside(
    tiny_llava: str, tmp_path: Path
) -> None:
    other = Backbone.from_pretrained(str(build_tiny_checkpoint(tmp_path / "other", seed=1)))
    save_projector(other, tmp_path / "projector.safetensors", torch.float32)
    projector = {"projector": str(tmp_path / "projector.safetensors")}
    _fit(tiny_llava, tmp_path / "a", Lora(rank=1), model_options=projector)
    last = tmp_path / "a" / "run" / "checkpoints" / "last.ckpt"

    _fit(tiny_llava, tmp_path / "b", Lora(rank=1), model_options=projector, ckpt_path=last)
    with pytest.raises(CheckpointError, match=r"model\.projector if it was set"):
        _fit(tiny_llava, tmp_path / "c", Lora(rank=1), ckpt_path=last)


@pytest.mark.parametrize("word", ["last", "best", "nowhere.ckpt"])
def test_a_checkpoint_that_is_no_file_is_refused(
    tiny_llava: str, tmp_path: Path, word: str
) -> None:
    with pytest.raises(CheckpointError, match=f"There is no checkpoint file {word}"):
        _fit(tiny_llava, tmp_path, ProjectorOnly(), ckpt_path=word)


def test_a_checkpoint_holds_trained_weights_only(whole: WholeFit) -> None:
    fit = whole(ProjectorOnly())

    content = torch.load(fit.last, weights_only=True)

    assert set(content["state_dict"]) == set(fit.module.freeze_report.trainable_names)


def test_a_checkpoint_of_another_policy_is_refused(
    tiny_llava: str, tmp_path: Path, whole: WholeFit
) -> None:
    with pytest.raises(CheckpointError, match="was trained under ProjectorOnly"):
        _fit(tiny_llava, tmp_path, Lora(rank=2), ckpt_path=whole(ProjectorOnly()).last)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, whole: WholeFit) -> None:
    other = str(build_tiny_checkpoint(tmp_path / "other", seed=1))

    with pytest.raises(CheckpointError, match="holds trained parts of"):
        _fit(other, tmp_path, ProjectorOnly(), ckpt_path=whole(ProjectorOnly()).last)


def test_an_existing_run_is_never_touched(tiny_llava: str, tmp_path: Path) -> None:
    _fit(tiny_llava, tmp_path, ProjectorOnly())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}

    _fit(tiny_llava, tmp_path, ProjectorOnly())

    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    assert (tmp_path / "run-2" / "metrics.csv").is_file()


@pytest.mark.slow
def test_resuming_after_kill_9_equals_never_stopping(tiny_llava: str, tmp_path: Path) -> None:
    command = [
        *(
            sys.executable,
            "-m",
            "lightning_mllm",
            "fit",
            "--model.checkpoint",
            tiny_llava,
            "--data",
            "Digits",
        ),
        *(
            "--trainer.max_epochs",
            "2",
            "--trainer.limit_train_batches",
            "20",
            "--trainer.limit_val_batches",
            "1",
        ),
        *(
            "--checkpointing.every_n_train_steps",
            "3",
            "--trainer.run.root",
            str(tmp_path),
            "--model.scorers",
            "[]",
        ),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}

    def run(name: str, *options: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, "--trainer.run.name", name, *options], env=environment)

    assert run("whole").wait() == 0
    killed, last = run("killed"), tmp_path / "killed" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert run("resumed", "--ckpt_path", str(last)).wait() == 0

    whole, resumed = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "resumed")
    )
    for name, weights in whole.items():
        assert torch.equal(weights, resumed[name]), name
