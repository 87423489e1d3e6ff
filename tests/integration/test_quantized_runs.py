"""Every command does with a quantised LLM what it does with a plain one, or says why not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_mllm.cli.main import main
from tests.integration.test_distributed import compare, run_two
from tests.support.command_line import (
    CONFIGS,
    SMALL_DIGITS,
    final_metrics,
    isolate,
    refusal,
)

LORA = (
    *("--model.policy", "Lora", "--model.policy.init_args.rank", "2"),
    *("--model.policy.init_args.projector", "true"),
)
SHORT = (
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.limit_train_batches", "4", "--trainer.limit_val_batches", "1"),
    *("--trainer.limit_test_batches", "1", "--trainer.limit_predict_batches", "1"),
    *("--trainer.val_check_interval", "2"),  # forwards without gradients between the steps
)
ALIGNMENT = ("--analysis", "Alignment", "--split", "test")
SKIPPING = ("--analysis", "ComputationSkipping", "--analysis.shares", "[0.0, 0.5]")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def common(checkpoint: str, quantize: str | None, *more: str) -> list[str]:
    chosen = [] if quantize is None else ["--model.quantize", quantize]
    return ["--model.checkpoint", checkpoint, *chosen, *SMALL_DIGITS, *SHORT, *more]


@dataclass(frozen=True)
class QuantizedRun:
    kind: str
    policy: tuple[str, ...]
    checkpoint: str
    folder: Path

    @property
    def last(self) -> str:
        return str(self.folder / "checkpoints" / "last.ckpt")

    def command(self, quantize: str | None, *more: str) -> list[str]:
        return [*common(self.checkpoint, quantize, *self.policy), "--ckpt_path", self.last, *more]


@pytest.fixture(scope="module", params=[("nf4", ()), ("int8", LORA)], ids=lambda each: each[0])
def trained(
    request: pytest.FixtureRequest, tiny_llava: str, tmp_path_factory: pytest.TempPathFactory
) -> QuantizedRun:
    """A fit of two epochs of which one is done, with the default callbacks: FreezeAudit passed."""
    kind, policy = request.param
    root = tmp_path_factory.mktemp("quantized")
    with pytest.MonkeyPatch.context() as monkeypatch:
        isolate(monkeypatch, root)
        main(["fit", *common(tiny_llava, kind, *policy), "--trainer.max_epochs", "1"])
    return QuantizedRun(kind, policy, tiny_llava, root / "runs" / "run")


@pytest.mark.slow
def test_what_was_trained_is_tested_quantised_or_not_and_says_which(
    trained: QuantizedRun, caplog: pytest.LogCaptureFixture
) -> None:
    scores: dict[str | None, dict[str, Any]] = {}
    for quantize in (trained.kind, None):
        name = quantize or "plain"
        main(["test", *trained.command(quantize), "--trainer.run.name", name])
        scores[quantize] = json.loads(
            Path("runs", name, "evaluation", "test-step4", "scores.json").read_text()
        )

    assert scores[trained.kind]["quantized"] == trained.kind
    assert "quantized" not in scores[None]
    losses = [final_metrics(Path("runs", name))["test/loss"] for name in (trained.kind, "plain")]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)
    warned = [each for each in caplog.messages if "was trained with" in each]
    assert warned == [
        f"The checkpoint was trained with {trained.kind} weights in the LLM and is used with "
        "unquantised ones: loss and scores differ a little from those of its run."
    ]


@pytest.mark.slow
def test_an_export_is_that_of_the_plain_model(trained: QuantizedRun) -> None:
    for quantize, name in ((trained.kind, "quantized"), (None, "plain")):
        command = ["--model.checkpoint", trained.checkpoint, *trained.policy]
        command += [] if quantize is None else ["--model.quantize", quantize]
        main(["export", *command, "--ckpt_path", trained.last, "--output", name])

    files = sorted(path.relative_to("plain") for path in Path("plain").rglob("*.safetensors"))
    assert len(files) == 2 + bool(trained.policy)
    for file in files:
        found, expected = (load_file(Path(name, file)) for name in ("quantized", "plain"))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    for text in ("config.json", "README.md"):
        assert Path("quantized", text).read_text() == Path("plain", text).read_text().replace(
            "plain", "quantized"
        )
    card = Path("plain/README.md").read_text()
    assert f"were quantised ({trained.kind}). Here they are those of the base model" in card


@pytest.mark.slow
def test_resuming_equals_never_stopping_and_a_plain_model_goes_on_too(
    trained: QuantizedRun,
) -> None:
    options = (
        "--model.decay",
        "constant",
        "--model.warmup_ratio",
        "0",
        "--trainer.max_epochs",
        "2",
    )
    fits: dict[str, tuple[str | None, tuple[str, ...]]] = {
        "whole": (trained.kind, ()),
        "begun": (trained.kind, ("--trainer.max_steps", "4")),
        "resumed": (trained.kind, ("--ckpt_path", "runs/begun/checkpoints/last.ckpt")),
        "plain": (None, ("--ckpt_path", "runs/begun/checkpoints/last.ckpt")),
    }
    states = {}
    for name, (quantize, more) in fits.items():
        given = common(trained.checkpoint, quantize, *trained.policy, *options, *more)
        main(["fit", *given, "--trainer.run.name", name])
        content = torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True)
        assert content["lightning_mllm"].get("quantized") == quantize
        states[name] = content["state_dict"]

    for name, weights in states["whole"].items():
        assert torch.equal(states["resumed"][name], weights), name
        assert not torch.equal(states["plain"][name], weights), name


@pytest.mark.slow
@pytest.mark.parametrize("analysis", [ALIGNMENT, SKIPPING], ids=lambda each: each[1])
def test_analyses_run_and_say_that_the_model_was_quantised(
    trained: QuantizedRun, analysis: tuple[str, ...]
) -> None:
    main(["analyze", *trained.command(trained.kind), *analysis])

    (settings,) = Path("runs/run/analysis/test-step4").glob("*/settings.json")
    assert json.loads(settings.read_text())["source"]["quantized"] == trained.kind


@pytest.mark.slow
def test_ft_e2e_and_sub_networks_are_refused(
    tiny_llava: str, capsys: pytest.CaptureFixture[str]
) -> None:
    e2e = ("--config", str(CONFIGS / "policy" / "ft_e2e.yaml"))
    said = refusal(capsys, ["fit", *common(tiny_llava, "nf4", *e2e)])
    assert "ProjectorAndLLM() trains" in said
    assert "layers that are quantised" in said
    said = refusal(
        capsys, ["analyze", *common(tiny_llava, "nf4"), "--analysis", "ActivatedWeights"]
    )
    assert "quantised, and which of them are kept is not defined. Leave model.quantize out" in said
    assert not Path("runs").exists() or not any(Path("runs").iterdir())


@pytest.mark.slow
def test_questions_are_answered_and_states_extracted(trained: QuantizedRun) -> None:
    main(["predict", *trained.command(trained.kind), "--trainer.run.name", "answers"])
    points = ("--points", "[{place: last, layer: 2}, {place: post}]", "--output", "states")
    main(["extract", *trained.command(trained.kind), *points])

    assert Path("runs/answers/predict/test-step4/predictions.csv").is_file()
    source = json.loads(Path("states/making.json").read_text())["source"]
    assert source["quantized"] == trained.kind


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tiny_llava: str, tmp_path: Path) -> None:
    given = ["fit", *common(tiny_llava, "nf4", *LORA), "--trainer.max_epochs", "1"]
    main([*given, "--trainer.run.name", "one"])
    run_two([*given, "--trainer.run.name", "two"], tmp_path)

    compare(tmp_path / "runs" / "one", tmp_path / "runs" / "two")
