"""Trained weights in bfloat16 and states in 8 bit: who may have them, and how a run goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchao.optim import AdamW8bit, _AdamW  # type: ignore[import-untyped]

from lightning_mllm.data import Digits
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.models import checkpoint
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.checkpoint import load_training_checkpoint
from lightning_mllm.models.freeze import LastLayers, ProjectorAndLLM
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.optimisation.muon import MuonAdamW
from lightning_mllm.models.optimisation.optimizer import make_optimizer, make_probe_group
from lightning_mllm.models.optimisation.prolonging import follow_longer_schedule
from lightning_mllm.models.optimisation.rounding import check_trained_dtype, seed_rounding
from lightning_mllm.models.optimisation.schedule import (
    LearningRates,
    PartSchedule,
    PartSchedules,
    Schedule,
    scheduled_parameter_groups,
)
from lightning_mllm.run import Run
from lightning_mllm.trainer import Trainer


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Compiling a step takes long; the arithmetic is the same."""
    torch.compiler.set_stance("force_eager")
    try:
        yield
    finally:
        torch.compiler.set_stance("default")


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    with _uncompiled():
        yield


def _rounding_adamw(params: Any, lr: float) -> Optimizer:
    optimizer: Optimizer = _AdamW(params, lr=lr, weight_decay=0.01, bf16_stochastic_round=True)
    return optimizer


def _rounding_8bit(params: Any, lr: float) -> Optimizer:
    optimizer: Optimizer = AdamW8bit(params, lr=lr, weight_decay=0.01, bf16_stochastic_round=True)
    return optimizer


def _fit(
    checkpoint: str,
    folder: Path,
    steps: int,
    ckpt_path: Path | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> MLLMModule:
    given: dict[str, Any] = {
        "policy": LastLayers(1, projector=True),
        "optimizer": _rounding_8bit,
        "trained_dtype": "bfloat16",
        "dtype": "bfloat16",
        "learning_rates": LearningRates(projector=1e-2, llm=1e-3),
        **options,
    }
    module = MLLMModule(checkpoint, scorers=(), decay="constant", warmup_ratio=0.0, **given)
    trainer = Trainer(
        run=Run(root=str(folder), wandb="disabled"),
        max_steps=steps,
        limit_val_batches=0,
        enable_progress_bar=False,
        callbacks=[ModelCheckpoint(save_last=True, every_n_train_steps=2)],
    )
    torch.manual_seed(7)
    trainer.fit(module, datamodule=Digits(checkpoint=checkpoint, batch_size=8), ckpt_path=ckpt_path)
    return module


def _last(folder: Path) -> Path:
    return folder / "run" / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def first(tiny_llava: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps, with weights in bfloat16 and states in 8 bit."""
    folder = tmp_path_factory.mktemp("first")
    with _uncompiled():
        _fit(tiny_llava, folder, 2)
    return folder


def test_2n_steps_are_n_steps_and_n_more_bit_for_bit(
    tiny_llava: str, tmp_path: Path, first: Path
) -> None:
    _check_resumes(tiny_llava, tmp_path, first, {})


@pytest.mark.slow
def test_the_same_with_states_in_bfloat16(tiny_llava: str, tmp_path: Path) -> None:
    options = {"optimizer": _rounding_adamw}
    _fit(tiny_llava, tmp_path / "first", 2, options=options)
    _check_resumes(tiny_llava, tmp_path, tmp_path / "first", options)


def _check_resumes(checkpoint: str, folder: Path, first: Path, options: Mapping[str, Any]) -> None:
    through, second = folder / "through", folder / "second"
    _fit(checkpoint, through, 4, options=options)
    _fit(checkpoint, second, 4, _last(first), options)

    expected, found = (load_training_checkpoint(_last(each)) for each in (through, second))
    ours, theirs = expected["state_dict"], found["state_dict"]
    assert {weights.dtype for weights in ours.values()} == {torch.bfloat16}
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        assert torch.equal(weights, theirs[name]), name
    ours, theirs = (each["optimizer_states"][0]["state"] for each in (expected, found))
    for index, state in ours.items():
        for name, value in state.items():
            assert torch.equal(_plain(value), _plain(theirs[index][name])), (index, name)


def _plain(value: torch.Tensor) -> torch.Tensor:
    return value.dequantize() if hasattr(value, "codes") else value


def test_states_of_8_bit_are_saved_in_8_bit(first: Path) -> None:
    content = load_training_checkpoint(_last(first))  # with weights_only=True

    states = content["optimizer_states"][0]["state"].values()
    large = [state["exp_avg"] for state in states if state["exp_avg"].numel() >= 4096]
    assert large and all(each.codes.dtype == torch.uint8 for each in large)
    assert all(each.dequantize().any() for each in large)


@pytest.mark.slow
def test_a_checkpoint_opens_in_a_process_that_has_no_optimiser(first: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from lightning_mllm.models.checkpoint import load_training_checkpoint\n"
        f"print(load_training_checkpoint(Path({str(_last(first))!r}))['global_step'])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split()[-1] == "2"


def test_a_checkpoint_with_states_of_a_package_that_is_missing_says_which(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "get_unsafe_globals_in_checkpoint", lambda _: ["torchao.optim"])
    monkeypatch.setattr(checkpoint, "find_spec", lambda _: None)

    with pytest.raises(CheckpointError, match=r"lightning-mllm\[torchao\]"):
        load_training_checkpoint(_last(first))


def test_weights_in_float32_may_have_states_in_8_bit(tiny_llava: str, tmp_path: Path) -> None:
    options = {"trained_dtype": "float32", "dtype": "float32"}

    module = _fit(tiny_llava, tmp_path, 1, options=options)

    assert {weights.dtype for weights in module.state_dict().values()} == {torch.float32}


def test_each_part_follows_its_own_rate_schedule_and_decay(tiny_llava: str) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    ProjectorAndLLM().apply(backbone)
    rates = LearningRates(projector=1e-2, llm=1e-3)
    parts = PartSchedules(llm=PartSchedule(0.5, "constant"))
    optimizer = _rounding_8bit(scheduled_parameter_groups(backbone, rates), 1e-4)
    scheduler = Schedule(rates, 0.0, "constant", 4, parts).scheduler(optimizer)
    optimizer.step()
    scheduler.step()  # the LLM is in the middle of its warm-up

    groups = {group["name"]: group for group in optimizer.param_groups}
    assert all(isinstance(group["lr"], torch.Tensor) for group in groups.values())  # torchao's rule
    assert float(groups["projector"]["lr"]) == pytest.approx(1e-2)
    assert float(groups["llm"]["lr"]) == pytest.approx(5e-4)
    assert groups["llm"]["weight_decay"] == 0.01
    assert groups["llm (no decay)"]["weight_decay"] == 0.0


def test_a_longer_schedule_keeps_rates_tensors_where_they_were() -> None:
    optimizer = _rounding_8bit([make_probe_group(torch.zeros(4, 4))], 1e-3)
    scheduler = LambdaLR(optimizer, [lambda step: 0.5])

    follow_longer_schedule(scheduler, 1, 2)
    optimizer.step()
    scheduler.step()

    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(5e-4)


@pytest.mark.parametrize(
    "optimizer", [AdamW, MuonAdamW, lambda params, lr: AdamW8bit(params, lr=lr)]
)
def test_bfloat16_without_stochastic_rounding_is_refused(optimizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"0\.168 instead of 0\.139.*bf16_stochastic_round true"):
        check_trained_dtype("bfloat16", torch.bfloat16, optimizer)


def test_a_fit_is_refused_before_a_model_is_loaded(tmp_path: Path, tiny_llava: str) -> None:
    module = MLLMModule(tiny_llava, trained_dtype="bfloat16", dtype="bfloat16")
    trainer = Trainer(run=Run(root=str(tmp_path), wandb="disabled"))

    with pytest.raises(ConfigError, match="does not round"):
        trainer.fit(module, datamodule=Digits(checkpoint=tiny_llava, batch_size=8))
    assert not hasattr(module, "adapted")


def test_bfloat16_beside_float32_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--model\.dtype bfloat16"):
        check_trained_dtype("bfloat16", torch.float32, _rounding_8bit)
    check_trained_dtype("float32", torch.float32, AdamW)


def test_going_on_in_another_dtype_is_refused(tiny_llava: str, tmp_path: Path, first: Path) -> None:
    with pytest.raises(ConfigError, match=r"--model\.trained_dtype bfloat16"):
        _fit(tiny_llava, tmp_path, 4, _last(first), {"trained_dtype": "float32"})


def test_going_on_with_another_optimiser_is_refused(first: Path) -> None:
    earlier = load_training_checkpoint(_last(first))[checkpoint.KEY]["optimizer"]
    groups = [make_probe_group(torch.zeros(2))]

    with pytest.raises(ConfigError, match=r"Set model\.optimizer to torchao\S+AdamW8bit"):
        make_optimizer(AdamW, groups, 1e-3, resumed=earlier)
    make_optimizer(_rounding_8bit, groups, 1e-3, resumed=earlier)


def test_what_rounding_draws_depends_on_the_step_and_on_no_process() -> None:
    optimizer = _rounding_8bit([make_probe_group(torch.zeros(4, 4))], 1e-3)
    drawn = []
    for rank, step in ((0, 1), (1, 1), (0, 2)):
        torch.manual_seed(rank)
        seed_rounding(optimizer, 7, step)
        drawn.append(torch.rand(1).item())

    assert drawn[0] == drawn[1] != drawn[2]


def test_an_optimiser_that_does_not_round_changes_no_random_number() -> None:
    optimizer = make_optimizer(AdamW, [make_probe_group(torch.zeros(2))], 1e-3)
    torch.manual_seed(3)
    expected = torch.rand(1)

    torch.manual_seed(3)
    seed_rounding(optimizer, 7, 1)

    assert torch.equal(torch.rand(1), expected)


def test_a_regression_in_bfloat16_learns_only_with_stochastic_rounding() -> None:
    def train(optimizer: Any, dtype: torch.dtype) -> float:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(256, 32, generator=generator)
        outputs = inputs @ torch.randn(32, 1, generator=generator)
        weight = torch.nn.Parameter(torch.ones(32, 1, dtype=dtype))
        made = optimizer([weight], 2e-4)
        torch.manual_seed(0)
        for _ in range(100):
            loss = (inputs @ weight.float() - outputs).square().mean()
            made.zero_grad()
            loss.backward()
            made.step()
        return float(loss.detach())

    plain = train(AdamW, torch.bfloat16)
    exact = train(lambda p, lr: AdamW(p, lr=lr, weight_decay=0.01), torch.float32)
    rounding = train(_rounding_adamw, torch.bfloat16)

    assert rounding == pytest.approx(exact, rel=0.01)
    assert plain > 1.005 * exact
