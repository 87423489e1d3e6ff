"""A fit in which something that is trained can't learn is refused before it starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from lightning_mllm.callbacks import Checkpointing
from lightning_mllm.data import LlavaJson
from lightning_mllm.errors import ConfigError
from lightning_mllm.models import freeze
from lightning_mllm.models.fit_checks import check_fit_monitors
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.optimisation.schedule import LearningRates
from lightning_mllm.trainer import Trainer
from tests.support.command_line import conversation, isolate, write_llava_json


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def _fit(
    checkpoint: str,
    *,
    images: int = 1,
    batch_size: int = 2,
    trainer: dict[str, Any] | None = None,
    **options: Any,
) -> Trainer:
    """Fit on four conversations, and return the trainer."""
    file = str(
        write_llava_json(Path("data"), [conversation(f"r{row}", images) for row in range(4)])
    )
    data = LlavaJson(
        train=file, val=file, image_root="data", checkpoint=checkpoint, batch_size=batch_size
    )
    quiet: dict[str, Any] = {
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "limit_val_batches": 0,
    }
    quiet |= trainer or {}
    made = Trainer(logger=False, **quiet)
    made.fit(MLLMModule(checkpoint, **options), datamodule=data)
    return made


@pytest.mark.parametrize(
    ("policy", "rates", "message"),
    [
        (
            freeze.ProjectorOnly(),
            {"projector": 0},
            r"'projector', but model\.learning_rates\.projector is 0",
        ),
        (freeze.ProjectorAndLLM(), {"llm": 0}, r"'llm', but model\.learning_rates\.llm is 0"),
        (
            freeze.Lora(rank=2, projector=True),
            {"lora": 0},
            r"'llm lora', but model\.learning_rates\.lora is 0",
        ),
        (
            freeze.Lora(rank=2, target="vision"),
            {"lora": 0},
            r"'vision lora', but model\.learning_rates\.lora is 0",
        ),
    ],
    ids=str,
)
def test_a_rate_of_0_of_a_trained_part_is_refused(
    tiny_llava: str, policy: freeze.FreezePolicy, rates: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _fit(tiny_llava, policy=policy, learning_rates=LearningRates(**rates))


def test_a_rate_of_0_of_a_frozen_part_is_no_matter(tiny_llava: str) -> None:
    assert _fit(tiny_llava, learning_rates=LearningRates(llm=0, lora=0, vision=0)).global_step == 2


def test_a_single_step_at_the_first_rate_of_the_warm_up_is_refused(tiny_llava: str) -> None:
    with pytest.raises(
        ConfigError, match=r"a single step, and a warm-up ratio of 0\.03 gives it a rate of 0"
    ):
        _fit(tiny_llava, trainer={"max_steps": 1})

    with pytest.raises(ConfigError, match=r"^4 training samples in batches of 8 are a single step"):
        _fit(tiny_llava, batch_size=8, trainer={"max_epochs": 1})

    assert _fit(tiny_llava, trainer={"max_steps": 1}, warmup_ratio=0.0).global_step == 1
    assert _fit(tiny_llava, trainer={"fast_dev_run": 1}).global_step == 1


@pytest.mark.parametrize("limit", ["max_epochs", "max_steps", "limit_train_batches"])
def test_a_fit_of_no_step_is_refused(tiny_llava: str, limit: str) -> None:
    with pytest.raises(ConfigError, match=rf"trainer\.{limit} is 0, so nothing would be trained"):
        _fit(tiny_llava, trainer={limit: 0})


@pytest.mark.parametrize(
    ("policy", "parts"),
    [
        (freeze.ProjectorOnly(), "projector"),
        (freeze.ProjectorAndLLM(), "projector"),
        (freeze.Everything(), "projector and vision"),
        (freeze.Lora(rank=2, target="both"), "vision lora"),
        (freeze.ByPattern(["vision_tower.*layers.0.*q_proj"]), "vision"),
    ],
    ids=str,
)
def test_parts_that_only_pictures_go_through_are_not_trained_without_any(
    tiny_llava: str, policy: freeze.FreezePolicy, parts: str
) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"No training sample of LlavaJson has a picture.* reaches the {parts} that",
    ):
        _fit(tiny_llava, images=0, policy=policy)


def test_the_llm_learns_without_pictures(tiny_llava: str) -> None:
    assert _fit(tiny_llava, images=0, policy=freeze.LLMOnly()).global_step == 2


SCORES = ("generation/accuracy", "likelihood/accuracy")


def _watch(*callbacks: Any, limit_val_batches: int = 1) -> None:
    trainer = SimpleNamespace(callbacks=callbacks, limit_val_batches=limit_val_batches)
    check_fit_monitors(trainer, MLLMModule("any"), SCORES)


@pytest.mark.parametrize("monitor", [None, "train/loss", "val/loss", "val/generation/accuracy"])
def test_what_a_fit_logs_can_be_watched(monitor: str | None) -> None:
    _watch(ModelCheckpoint(monitor=monitor), EarlyStopping("val/loss"))


def test_what_it_does_not_log_is_refused_with_what_it_logs() -> None:
    with pytest.raises(ConfigError, match=r"ModelCheckpoint watches 'val/los', .* train/loss, val"):
        _watch(ModelCheckpoint(monitor="val/los"))
    with pytest.raises(ConfigError, match=r"'val/loss', .* option monitor to one of: train/loss\."):
        _watch(EarlyStopping("val/loss"), limit_val_batches=0)


def test_the_best_checkpoint_goes_by_what_a_validation_logs() -> None:
    _watch(Checkpointing(best="val/generation/accuracy"))

    with pytest.raises(
        ConfigError, match=r"watches 'val/generation/acuracy'.* option best .*: val/"
    ):
        _watch(Checkpointing(best="val/generation/acuracy:max"))


def test_a_callback_of_the_users_own_may_log_what_is_watched() -> None:
    class Own(Callback):
        pass

    _watch(EarlyStopping("val/mine"), Own())
    _watch(EarlyStopping("val/mine", strict=False))
