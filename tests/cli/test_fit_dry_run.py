"""`lightning fit --dry-run` says what a fit needs, from the config of a model alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lightning_mllm.cli import fit_dry_run
from lightning_mllm.cli.main import main
from lightning_mllm.fsdp2_strategy import FSDP2Strategy
from tests.support.command_line import CONFIGS, SMALL_DIGITS, isolate


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def without_weights(tiny_llava: str, tmp_path: Path) -> str:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_llava, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return str(folder)


def _dry_run(checkpoint: str, *options: str) -> None:
    main(["fit", "--dry-run", "--model.checkpoint", checkpoint, *SMALL_DIGITS, *options])


def test_it_needs_no_weights_and_leaves_nothing(
    without_weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())

    _dry_run(without_weights, "--trainer.accelerator", "cpu")

    shown = capsys.readouterr().out
    for part in ("weights", "gradients", "optimiser states", "activations", "total"):
        assert part in shown
    assert "tokens" in shown and "It fits" in shown
    assert sorted(tmp_path.iterdir()) == before


def test_a_gpu_may_be_planned_where_there_is_none(
    without_weights: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_dry_run, "_find_memory", lambda _: None)

    _dry_run(without_weights, "--trainer.accelerator", "gpu", "--trainer.devices", "2")

    shown = capsys.readouterr().out
    assert "no GPU here" in shown and "It fits a card of 24 GB" in shown
    assert "exchange between processes" in shown and "on 2 cuda device(s)" in shown


def test_where_there_is_no_gpu_it_says_what_would_make_it_fit_the_largest_card(
    without_weights: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_dry_run, "_find_memory", lambda _: None)
    monkeypatch.setattr(fit_dry_run, "_CARDS", (2, 2.15))  # GB, of which CUDA takes 2 GiB

    _dry_run(without_weights, "--config", str(CONFIGS / "policy/ft_e2e.yaml"))

    shown = capsys.readouterr().out
    assert "It fits no card of 2.15 GB" in shown
    assert "--model.gradient_checkpointing true" in shown


def test_what_does_not_fit_ends_with_status_1_and_says_what_to_change(
    without_weights: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_dry_run, "_find_memory", lambda _: 1e-4)

    with pytest.raises(SystemExit) as stopped:
        _dry_run(without_weights, "--config", str(CONFIGS / "policy/ft_e2e.yaml"))

    assert stopped.value.code == 1  # and no sentence of a refusal
    shown = capsys.readouterr().out
    assert "It does not fit" in shown and "--model.gradient_checkpointing true" in shown


def test_what_a_fit_would_refuse_is_refused(
    without_weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        _dry_run(without_weights, "--trainer.precision", "bf16-true")

    assert "trainer.precision" in str(stopped.value.code)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model.device_map", "auto"), "model.device_map"),
        (("--model.quantize", "nf4", "--model.compile", "true"), "model.compile"),
        (("--model.quantize", "nf4", "--trainer.strategy", "fsdp2"), "can't be sharded"),
    ],
)
def test_options_that_a_fit_would_refuse_together_are_refused(
    without_weights: str, options: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        _dry_run(without_weights, *options)

    assert said in str(stopped.value.code)


def test_a_strategy_by_its_class_is_the_one_by_its_name() -> None:
    own = FSDP2Strategy(evaluation="sharded")

    assert fit_dry_run._find_sharding(own) is own
    assert fit_dry_run._find_sharding("fsdp2") is not None
    assert fit_dry_run._find_sharding("ddp") is None


def test_only_fit_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["test", "--dry-run", "--model.checkpoint", "x", "--data", "Digits"])

    assert stopped.value.code == 2
    assert "--dry-run" in capsys.readouterr().err
