"""The Trainer without the command line: run folders, atomic checkpoints, tests around a fit."""

from __future__ import annotations

import csv
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_only

from lightning_mllm.analysis import AnswerLens
from lightning_mllm.analyzing import Analyzing
from lightning_mllm.callbacks.trainer_state import trainer_figure, trainer_run_dir
from lightning_mllm.data import Digits, load_processor
from lightning_mllm.data.images.geometry import default_geometry
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.models.freeze import ZeroShot
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.run import Run
from lightning_mllm.store.files import read_json
from lightning_mllm.tracking.analysis_run import AnalysisRun
from lightning_mllm.trainer import Trainer, TrainerCheckpointIO
from tests.support.command_line import files_below, isolate


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


# ---- runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a/", "../up"])
def test_a_run_name_that_is_no_plain_folder_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.run\.name must be a plain name"):
        Run(name=name, root=str(tmp_path / "runs")).make_folder()

    assert not files_below(tmp_path)


def test_each_run_gets_a_folder_that_was_not_there(tmp_path: Path) -> None:
    folders = [Run(name="study", root=str(tmp_path)).make_folder() for _ in range(3)]

    assert [folder.name for folder in folders] == ["study", "study-2", "study-3"]
    assert all(folder.is_dir() for folder in folders)


def test_a_file_in_the_place_of_the_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "study").write_text("mine")

    folder = Run(name="study", root=str(tmp_path)).make_folder()

    assert folder.name == "study-2"
    assert (tmp_path / "study").read_text() == "mine"


def test_a_root_that_is_a_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")

    with pytest.raises(ConfigError, match=r"can't be made.*Set trainer\.run\.root"):
        Run(root=str(tmp_path / "runs")).make_folder()


class Second(SingleDeviceStrategy):
    """The second of two processes, which the first one tells what it has."""

    def __init__(self, told: dict[str, str]) -> None:
        super().__init__(device=torch.device("cpu"))
        self.told = told

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return self.told.get(obj, obj) if isinstance(obj, str) else obj


class Seen(L.Callback):
    """Notes the folder of the run, as other callbacks see it when they are set up."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.folder = trainer_run_dir(trainer)


def test_all_processes_work_in_the_folder_that_the_first_one_has_made(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        Run(root="runs").make_folder() for _ in range(2)
    ]  # an earlier one, and that of the first process
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    second = Second({"runs/run": str(runs[1])})
    trainer = Trainer(run=Run(root="runs"), strategy=second, callbacks=[seen := Seen()], **SMALL)

    trainer.validate(MLLMModule(tiny_llava), datamodule=digits(tiny_llava), verbose=False)

    assert (seen.folder, Path(trainer.default_root_dir)) == (runs[1], runs[1])
    assert not list(runs[0].iterdir())


def test_an_analysis_that_fails_tells_the_other_processes(tmp_path: Path) -> None:
    trainer: Any = None
    analyzing = Analyzing([AnswerLens()], "test", None)
    analyzing.on_exception(trainer, MLLMModule("none"), ValueError())  # before it has begun
    analyzing._run = AnalysisRun(
        [AnswerLens()], tmp_path, rank=1, world_size=2, barrier=lambda: None
    )

    analyzing.on_exception(trainer, MLLMModule("none"), ValueError())

    assert files_below(tmp_path) == {"process-1.failed"}


# ---- checkpoints --------------------------------------------------------------------------------


def test_a_crash_in_the_middle_of_writing_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    TrainerCheckpointIO().save_checkpoint({"step": 1}, path)

    def power_cut(content: Any, part: Path) -> None:
        part.write_bytes(b"half a check")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", power_cut)
    with pytest.raises(KeyboardInterrupt):
        TrainerCheckpointIO().save_checkpoint({"step": 2}, path)

    assert TrainerCheckpointIO().load_checkpoint(path) == {"step": 1}


def test_the_next_checkpoint_removes_what_a_killed_process_has_left(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt.17-0a1b2c3d.part").write_bytes(b"half a check")
    (tmp_path / "step=2.ckpt.17-0a1b2c3d.part").write_bytes(b"of another file")

    TrainerCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "last.ckpt")

    assert files_below(tmp_path) == {"last.ckpt", "step=2.ckpt.17-0a1b2c3d.part"}


def test_a_full_disk_leaves_the_old_file_whole_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    TrainerCheckpointIO().save_checkpoint({"weights": torch.ones(10)}, path)

    with (
        largest_file(10_000),
        pytest.raises(CheckpointError, match=r"could not be written.*Free some space"),
    ):
        TrainerCheckpointIO().save_checkpoint({"weights": torch.ones(100_000)}, path)

    assert TrainerCheckpointIO().load_checkpoint(path)["weights"].sum() == 10
    assert files_below(tmp_path) == {"last.ckpt"}


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("hacked",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_not_run(
    tmp_path: Path, zipped: bool
) -> None:
    path = tmp_path / "evil.ckpt"
    if zipped:
        torch.save({"state_dict": Code()}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Code()}))

    with pytest.raises(CheckpointError, match="can't be read as a checkpoint"):
        TrainerCheckpointIO().load_checkpoint(path)

    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"weights": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(CheckpointError, match=r"can't be read as a checkpoint.*Use an earlier one"):
        TrainerCheckpointIO().load_checkpoint(path)


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint file"):
        TrainerCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")


# ---- as in a notebook ---------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "enable_progress_bar": False,
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "limit_test_batches": 1,
    "max_epochs": 1,
}


def digits(checkpoint: str) -> Digits:
    return Digits(checkpoint=checkpoint, batch_size=4, eval_batch_size=4)


def test_a_notebook_fits_and_tests_with_three_objects(tiny_llava: str, tmp_path: Path) -> None:
    trainer = Trainer(run=Run(root=str(tmp_path / "runs"), name="notebook"), **SMALL)
    module = MLLMModule(tiny_llava)

    trainer.fit(module, datamodule=digits(tiny_llava), test_before=True, test_after=True)

    run = tmp_path / "runs" / "notebook"
    assert Path(trainer.default_root_dir) == run
    assert {"metrics.csv"} <= files_below(run)
    header = (run / "metrics.csv").read_text().partition("\n")[0].split(",")
    assert {"val/loss", "zero_shot/likelihood/accuracy", "test/likelihood/accuracy"} <= set(header)
    assert files_below(tmp_path) == {f"runs/notebook/{name}" for name in files_below(run)}


def test_test_before_counts_as_step_0_and_does_not_move_the_fit(
    tiny_llava: str, tmp_path: Path
) -> None:
    def fit(name: str, test_before: bool) -> dict[str, Any]:
        torch.manual_seed(3)
        trainer = Trainer(run=Run(root=str(tmp_path), name=name), **SMALL)
        module = MLLMModule(tiny_llava)
        trainer.fit(module, datamodule=digits(tiny_llava), test_before=test_before)
        assert trainer.global_step == 2
        return module.state_dict()

    without, after = fit("without", test_before=False), fit("after", test_before=True)

    for name, weights in without.items():
        assert torch.equal(weights, after[name]), name


class _FailsOnce(L.Callback):
    """Logs a number, and fails the first time that a sanity check is over."""

    fails = True

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for each in trainer.loggers:
            each.log_metrics({"mine": 1}, 0)
            each.save()
        if self.fails:
            self.fails = False
            raise RuntimeError("not yet")


def test_a_fit_whose_set_up_has_failed_can_be_tried_again(tiny_llava: str, tmp_path: Path) -> None:
    trainer = Trainer(callbacks=[_FailsOnce()], **{**SMALL, "num_sanity_val_steps": 1})
    module, data = MLLMModule(tiny_llava, scorers=()), digits(tiny_llava)
    with pytest.raises(RuntimeError, match="not yet"):
        trainer.fit(module, datamodule=data)
    assert not files_below(tmp_path)

    trainer.fit(module, datamodule=data)

    with Path(trainer.default_root_dir, "metrics.csv").open(newline="") as file:
        assert [row["mine"] for row in csv.DictReader(file)].count("1") == 1
    status = read_json(Path(trainer.default_root_dir, "status.json"))
    assert status["status"] == "finished"


def test_a_zero_shot_model_is_refused_before_its_evaluation_not_after(
    tiny_llava: str, tmp_path: Path
) -> None:
    trainer = Trainer(run=Run(root=str(tmp_path)), **SMALL)
    module = MLLMModule(tiny_llava, policy=ZeroShot())

    with pytest.raises(ConfigError, match="leaves nothing trainable"):
        trainer.fit(module, datamodule=digits(tiny_llava), test_before=True)

    assert not module.results


def test_a_logger_of_the_users_own_takes_the_place_of_ours(tiny_llava: str, tmp_path: Path) -> None:
    trainer = Trainer(logger=False, enable_checkpointing=False, **SMALL)

    trainer.fit(MLLMModule(tiny_llava), datamodule=digits(tiny_llava))

    assert not files_below(tmp_path)


def test_export_without_a_checkpoint_is_the_untouched_model(
    tiny_llava: str, tmp_path: Path
) -> None:
    module = MLLMModule(tiny_llava)
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)

    written = trainer.export(module, output=str(tmp_path / "out"))

    assert tmp_path / "out" in written
    exported = MLLMModule(str(tmp_path / "out"))
    exported.configure_model()
    assert exported.backbone.fingerprint == module.backbone.fingerprint


def test_export_right_behind_a_fit_keeps_its_geometry(tiny_llava: str, tmp_path: Path) -> None:
    trainer, module = (
        Trainer(logger=False, enable_checkpointing=False, **SMALL),
        MLLMModule(tiny_llava),
    )
    data = Digits(checkpoint=tiny_llava, batch_size=4, eval_batch_size=4, geometry="crop")
    trainer.fit(module, datamodule=data)

    trainer.export(module, output=str(tmp_path / "out"))

    assert default_geometry(load_processor(str(tmp_path / "out"))) == "crop"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond a size: to a writer it looks like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_figures_are_of_the_kind_of_the_run(tmp_path: Path, kind: Any) -> None:
    run = Run(root=str(tmp_path), wandb="disabled", figures=kind)
    trainer = Trainer(run=run, accelerator="cpu")

    assert trainer_figure(trainer, tmp_path, "probes") == tmp_path / f"probes.{kind}"
    assert AnalysisRun.of([], trainer, "analysis").figures == kind
