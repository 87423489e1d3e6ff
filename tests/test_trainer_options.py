from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.plugins import HalfPrecision, MixedPrecision
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    StrategyRegistry,
)

from lightning_mllm.errors import ConfigError
from lightning_mllm.fsdp2_strategy import FSDP2Strategy, GatherForEvaluation
from lightning_mllm.trainer import Trainer, TrainerCheckpointIO
from lightning_mllm.trainer_options import check_trainer_options, check_trainer_strategy
from tests.support.command_line import files_below, isolate

WORKING = {*("ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "fsdp2")}


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def test_each_strategy_that_lightning_knows_works_or_is_refused_by_name() -> None:
    names = {*StrategyRegistry.available_strategies(), "fsdp2", "a_new_one"}
    assert names >= WORKING | {"fsdp", "deepspeed", "ddp_spawn", "ddp_fork", "ddp_notebook"}

    for name in names - WORKING:
        with pytest.raises(
            ConfigError, match=rf"trainer\.strategy {name} is not supported.* Use auto, ddp"
        ):
            check_trainer_strategy(name)
    for name in (*WORKING, "auto"):
        check_trainer_strategy(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fsdp", "checkpoints of its own form"),
        ("fsdp_cpu_offload", "checkpoints of its own form"),
        ("deepspeed_stage_3", "takes over backward passes.*folders that nothing else opens"),
    ],
)
def test_other_ways_to_shard_are_refused_with_the_reason_and_the_way_out(
    name: str, why: str
) -> None:
    with pytest.raises(ConfigError, match=rf"strategy {name} is not supported: .*{why}.*use fsdp2"):
        check_trainer_strategy(name)


def test_fsdp2_by_name_is_its_strategy_and_comes_before_all_callbacks() -> None:
    trainer = Trainer(logger=False, accelerator="cpu", devices=1, strategy="fsdp2")

    assert isinstance(trainer.strategy, FSDP2Strategy)
    kinds = [type(callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]  # Lightning's
    assert kinds.index(GatherForEvaluation) == 1  # after that which notes how a run ends


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        (FSDPStrategy(), "FSDPStrategy"),
        (ModelParallelStrategy(), "ModelParallelStrategy"),
        (DDPStrategy(start_method="fork"), r"DDPStrategy\(start_method='fork'\)"),
        (DDPStrategy(start_method="spawn"), r"DDPStrategy\(start_method='spawn'\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_object_is_refused_as_its_name_is(strategy: Any, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"strategy {name} is not supported"):
        Trainer(strategy=strategy)

    assert not list(tmp_path.iterdir())


def test_a_strategy_that_lightning_chooses_itself_is_looked_at_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connector = "lightning.pytorch.trainer.connectors.accelerator_connector"
    monkeypatch.setattr(f"{connector}._IS_INTERACTIVE", True)  # as in a notebook

    with pytest.raises(
        ConfigError, match=r"start_method='fork'\) is not supported.*trainer\.devices=1"
    ):
        Trainer(logger=False, accelerator="cpu", devices=2)


def test_ddp_in_processes_of_its_own_and_one_device_work() -> None:
    check_trainer_strategy(DDPStrategy(find_unused_parameters=True))
    Trainer(logger=False, accelerator="cpu", devices=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"barebones": True}, r"barebones switches off .*trainer\.fast_dev_run"),
        ({"use_distributed_sampler": True}, r"would put another sampler"),
        ({"val_check_interval": 0}, r"limit_val_batches=0"),
        ({"callbacks": GradientAccumulationScheduler({0: 2})}, r"model\.micro_batch_size"),
        ({"accumulate_grad_batches": 4}, r"model\.micro_batch_size"),
        ({"precision": "bf16-mixed"}, r"'bf16-mixed'.* model\.dtype"),
        ({"plugins": MixedPrecision("bf16-mixed", "cpu")}, r"plugins names MixedPrecision"),
        ({"plugins": [HalfPrecision("bf16-true")]}, r"plugins names HalfPrecision"),
        ({"plugins": TrainerCheckpointIO()}, r"plugins names TrainerCheckpointIO"),
        ({"accelerator": "nope"}, r"Lightning refuses .*accelerator='nope'"),
        ({"accelerator": "cpu", "devices": 0}, r"Lightning refuses .*devices"),
        ({"overfit_batches": -1}, r"Lightning refuses .*overfit_batches"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_that_would_do_something_else_is_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(logger=False, **options)


def test_options_that_say_what_is_done_anyway_are_taken(tmp_path: Path) -> None:
    check_trainer_options(
        {"precision": "32-true", "accumulate_grad_batches": 1, "plugins": [SimpleNamespace()]}
    )
    trainer = Trainer(
        logger=False,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[ModelCheckpoint(tmp_path)],
    )

    assert not trainer.checkpoint_callbacks
    assert not files_below(tmp_path)
