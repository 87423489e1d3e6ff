"""Short real fits of a model that skips: what it learns from, and where it skips."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.analysis.skipping.skipping import skipping
from lightning_mllm.callbacks import SkipComputations
from lightning_mllm.cli.main import main
from lightning_mllm.data import LlavaJson
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.adapted import AdaptedModel
from lightning_mllm.models.checkpoint import KEY, load_training_checkpoint
from lightning_mllm.models.freeze import ByPattern, Everything, LLMOnly, ZeroShot
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.models.loss import answer_loss
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.trainer import Trainer
from tests.callbacks.conftest import make_trainer
from tests.models.conftest import digits
from tests.support.command_line import SMALL_DIGITS, isolate, write_llava_json
from tests.support.feature_callbacks import make_run

HALF = Skip(share=0.5, tokens="all", phase="both")
SECOND_BLOCK = Skip(computation="block", share=1.0, tokens="all", phase="both", start=1)


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@cache
def after_a_step(
    checkpoint: str, skip: Skip | None, **options: Any
) -> tuple[dict[str, Tensor], MLLMModule]:
    module = MLLMModule(
        checkpoint,
        policy=Everything(),
        optimizer=lambda params, lr: SGD(params, lr=lr),
        warmup_ratio=0.0,
        scorers=(),
        **options,
    )
    callbacks: list[Any] = [] if skip is None else [SkipComputations(skip)]
    trainer = Trainer(
        logger=False,
        max_steps=1,
        limit_val_batches=0,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    torch.manual_seed(0)
    trainer.fit(module, datamodule=digits(checkpoint))
    return {name: weights.clone() for name, weights in module.state_dict().items()}, module


@pytest.mark.parametrize(
    "skip", [HALF, SECOND_BLOCK, Skip(computation="attention", phase="both", tokens="all")]
)
@pytest.mark.parametrize(
    "options",
    [{"micro_batch_size": 3}, {"micro_batch_size": 1}, {"gradient_checkpointing": True}],
    ids=str,
)
def test_micro_batches_and_checkpointing_take_the_step_of_the_whole_batch(
    tiny_llava: str, skip: Skip, options: dict[str, Any]
) -> None:
    whole, _ = after_a_step(tiny_llava, skip)
    pieces, _ = after_a_step(tiny_llava, skip, **options)
    clean, _ = after_a_step(tiny_llava, None)

    for name, weights in whole.items():
        torch.testing.assert_close(pieces[name], weights, rtol=1e-5, atol=1e-6, msg=name)
    assert any(
        not torch.allclose(clean[name], weights, rtol=0, atol=1e-6)
        for name, weights in whole.items()
    )


def test_weights_that_no_token_comes_by_stay(tiny_llava: str) -> None:
    weights, module = after_a_step(tiny_llava, SECOND_BLOCK)
    start = MLLMModule(tiny_llava, policy=Everything())
    start.configure_model()

    stayed = {
        name for name, before in start.state_dict().items() if torch.equal(weights[name], before)
    }
    of_layers = [
        {name for name in weights if f"language_model.layers.{layer}." in name} for layer in (0, 1)
    ]
    assert of_layers[1] <= stayed
    assert not of_layers[0] & stayed
    assert module.adapted.edit is None
    assert not any("forward" in layer.__dict__ for layer in decoder_layers(module.backbone))


def test_a_fit_that_skips_no_token_is_told(
    tiny_llava: str, caplog: pytest.LogCaptureFixture
) -> None:
    after_a_step(tiny_llava, Skip(share=0.001))

    assert "SkipComputations skipped nothing in any of 1 batches" in caplog.text
    assert "a share of 0.001 of their perceptual tokens" in caplog.text


@pytest.mark.parametrize("in_evaluation", [False, True])
def test_validation_and_test_skip_if_they_are_to(
    tiny_llava: str, tmp_path: Path, in_evaluation: bool
) -> None:
    callback = SkipComputations(HALF, in_evaluation=in_evaluation)

    run = make_run(tiny_llava, tmp_path / "run", [callback], max_epochs=1).fit().test()

    batch = next(iter(run.data.plain_dataloader("test")))
    with torch.no_grad():
        clean = answer_loss(run.module.backbone, batch).mean
        with skipping(run.module.backbone, batch, HALF):
            skipped = answer_loss(run.module.backbone, batch).mean
    assert not torch.isclose(clean, skipped)
    found = run.trainer.callback_metrics["test/loss"]
    torch.testing.assert_close(found, skipped if in_evaluation else clean, rtol=1e-5, atol=1e-6)


def test_a_training_checkpoint_says_that_the_model_skipped(tiny_llava: str, tmp_path: Path) -> None:
    class Save(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "end.ckpt")

    trainer = make_trainer(tmp_path, callbacks=[Save(), SkipComputations(HALF)])
    trainer.fit(MLLMModule(tiny_llava, policy=LLMOnly()), datamodule=digits(tiny_llava))

    assert load_training_checkpoint(tmp_path / "end.ckpt")[KEY]["edited"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fit_skips_from_the_command_line(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    skip = {
        "computation": "ffn",
        "share": 0.5,
        "tokens": "all",
        "phase": "both",
        "start": 0,
        "stop": 1.0,
    }
    callback = {"class_path": "SkipComputations", "init_args": {"skip": skip}}
    (tmp_path / "skip.yaml").write_text(json.dumps({"trainer": {"callbacks": [callback]}}))
    rows: dict[type[nn.Module], list[int]] = {LlamaAttention: [], LlamaMLP: []}
    for kind, found in rows.items():
        monkeypatch.setattr(kind, "forward", counting(kind.forward, found))

    model = ["--model.checkpoint", tiny_llava, "--model.policy", "LLMOnly"]
    trial = ["--trainer.fast_dev_run", "1", "--model.gradient_checkpointing", str(checkpointing)]
    main(["fit", "--config", "skip.yaml", *model, *SMALL_DIGITS, *trial])

    passes = 2 * (
        1 + checkpointing
    )  # of two layers, forward and, to compute activations again, in the backward
    assert [len(each) for each in rows.values()] == [passes, passes]
    assert max(rows[LlamaMLP]) < 0.7 * min(rows[LlamaAttention])


def counting(forward: Callable[..., Any], rows: list[int]) -> Callable[..., Any]:
    """Return a forward that notes how many rows it is trained on."""

    def count(module: nn.Module, *positional: Any, **named: Any) -> Any:
        entering = positional[0] if positional else named["hidden_states"]
        if torch.is_grad_enabled():
            rows.append(entering.flatten(0, -2).shape[0])
        return forward(module, *positional, **named)

    return count


def test_a_model_that_can_not_skip_is_refused_before_the_first_batch(
    tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(AdaptedModel, "loss")

    with pytest.raises(ConfigError, match=r"is not a range of layers"):
        after_a_step(tiny_llava, Skip(start=7))


def test_weights_of_two_precisions_can_be_trained_with_a_skip(
    tiny_llava: str, tmp_path: Path
) -> None:
    policy = ByPattern([r"language_model.*q_proj"])  # in float32, beside others in bfloat16
    module = MLLMModule(tiny_llava, policy=policy, dtype="bfloat16", scorers=())
    trainer = make_trainer(
        tmp_path, [SkipComputations(Skip(computation="block", visible=True))], max_steps=2
    )

    trainer.fit(module, datamodule=digits(tiny_llava))

    assert trainer.global_step == 2


def test_questions_among_other_samples_are_answered_with_the_skip_of_their_own(
    tiny_llava: str, tmp_path: Path
) -> None:
    rows = [
        {
            "id": f"q-{k}",
            **({"kind": "colour"} if k % 2 else {}),
            "image": [f"{k}.png"],
            "conversations": [
                {"from": "human", "value": f"<image>\n{'Say what there is. ' * (k + 1)}"},
                {"from": "gpt", "value": "red"},
            ],
        }
        for k in range(4)
    ]
    file = write_llava_json(tmp_path / "questions", rows)
    data = LlavaJson(
        checkpoint=tiny_llava, train=str(file), val=str(file), test=str(file), eval_batch_size=4
    )
    trainer = make_trainer(
        tmp_path / "run", [SkipComputations(Skip(computation="block", share=1.0, start=1))]
    )

    (found,) = trainer.validate(
        MLLMModule(tiny_llava, policy=ZeroShot()), datamodule=data, verbose=False
    )

    assert 0 <= found["val/exact_match/colour"] <= 1
