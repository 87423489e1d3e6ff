"""Small fits under `fsdp2`, `ddp` and in one process; many of them in one launch of processes.

As a program, each of its processes runs all cases one after the other:
`torchrun --nproc_per_node 2 -m tests.support.sharded_fits FOLDER`, where `FOLDER` has
`checkpoints.json` (name -> folder) and gets a file per case.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_mllm.analysis import Skip
from lightning_mllm.callbacks import (
    EvaluationReport,
    FreezeAudit,
    LearningAudit,
    ProbeEachEpoch,
    SkipComputations,
)
from lightning_mllm.data import Digits, LlavaJson
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.evaluation import Generation, Likelihood
from lightning_mllm.fsdp2_strategy import FSDP2Strategy
from lightning_mllm.models.freeze import (
    Combined,
    Everything,
    FreezePolicy,
    LastLayers,
    Lora,
    ProjectorAndLLM,
    ProjectorAndVision,
    ProjectorOnly,
)
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.optimisation.muon import MuonAdamW
from lightning_mllm.probing import NearestCentroid
from lightning_mllm.run import Run
from lightning_mllm.trainer import Trainer
from lightning_mllm.types import Sample
from tests.support.command_line import conversation, write_llava_json

BATCH = 6  # over all processes: 2 and 3 of them divide it
E2E = ProjectorAndLLM()
HALF = 2  # steps after which a checkpoint is written


@dataclass(frozen=True)
class Case:
    """A fit.

    Attributes:
        policy: What is trained.
        checkpoint: Name of the tiny checkpoint.
        texts: Whether half of the samples have no picture, each in a micro-batch of its own.
        validates: Whether there are validations, with probes, and a test at the end.
        evaluation: The strategy's option.
        resumes: Name of the case from whose half this one goes on.
        strategy: Name of the strategy.
        tolerance: How far weights may be from those of one process.
        options: Options of the module.
        clip: Largest norm of the gradients.
        skip: What is skipped in training.
    """

    policy: FreezePolicy = E2E
    checkpoint: str = "llava"
    texts: bool = False
    validates: bool = False
    evaluation: str = "whole"
    resumes: str | None = None
    strategy: str = "fsdp2"
    tolerance: float = 1e-6
    options: tuple[tuple[str, Any], ...] = ()
    clip: float | None = None
    skip: Skip | None = None


def _make_muon(params: Any, lr: float) -> MuonAdamW:
    return MuonAdamW(params, lr)


UNUSED = "ddp_find_unused_parameters_true"
MICRO, CHECKPOINTING = ("micro_batch_size", 1), ("gradient_checkpointing", True)
BFLOAT16, MUON = ("dtype", "bfloat16"), ("optimizer", _make_muon)
LORA, BOTH = Lora(rank=4), Lora(rank=4, projector=True)

CASES = {
    "e2e": Case(),
    "projector": Case(ProjectorOnly()),
    "lora": Case(LORA),
    "lora_projector": Case(BOTH, options=(MICRO,), clip=0.05),
    "last_layers": Case(LastLayers(1, projector=True)),
    "tower_and_lora": Case(Combined([ProjectorAndVision(), LORA]), tolerance=5e-6),
    "everything": Case(Everything(), texts=True, options=(MICRO,), tolerance=5e-6),
    "micro": Case(options=(MICRO,), clip=0.05),
    "checkpointing": Case(options=(CHECKPOINTING,)),
    "texts": Case(ProjectorOnly(), texts=True, options=(MICRO,)),
    "texts_own_tower": Case(ProjectorOnly(), "llava_vit", texts=True, options=(MICRO,)),
    "texts_lora": Case(Lora(rank=4, target="both"), texts=True, options=(MICRO,)),
    "muon": Case(options=(MUON,), tolerance=1e-3),
    "muon_resumed": Case(options=(MUON,), resumes="muon", tolerance=1e-3),
    "validation": Case(validates=True),
    "validation_sharded": Case(validates=True, evaluation="sharded"),
    "validation_lora": Case(BOTH, validates=True),
    "resumed": Case(resumes="e2e"),
    "resumed_ddp": Case(resumes="e2e", strategy="ddp"),
    "bfloat16": Case(options=(BFLOAT16,), tolerance=5e-3),
    "bfloat16_ddp": Case(options=(BFLOAT16,), strategy="ddp", tolerance=5e-3),
    "bfloat16_lora": Case(BOTH, options=(BFLOAT16,), tolerance=5e-3),
    "bfloat16_lora_ddp": Case(BOTH, options=(BFLOAT16,), strategy="ddp", tolerance=5e-3),
    "llava_next": Case(checkpoint="llava_next", validates=True),
    "qwen2_5_vl": Case(checkpoint="qwen2_5_vl", validates=True),
    # AdamW takes a whole step along gradients near 0, whose signs depend on the order of sums:
    # these are as far from one process under DDP, to whose weights those of shards are compared
    "deepstack": Case(checkpoint="qwen3_vl", tolerance=5e-5),
    "deepstack_ddp": Case(checkpoint="qwen3_vl", strategy="ddp", tolerance=5e-5),
    "skipping": Case(skip=Skip(computation="block"), tolerance=5e-5),
    "skipping_ddp": Case(skip=Skip(computation="block"), strategy=UNUSED, tolerance=5e-5),
    "tied": Case(checkpoint="llava_siglip", tolerance=5e-5),
    "tied_ddp": Case(checkpoint="llava_siglip", strategy="ddp", tolerance=5e-5),
}


def run_case(name: str, folder: Path, processes: int) -> None:
    """Run a case; the first process writes what came of it to `<name>.pt`."""
    case = CASES[name]
    torch.manual_seed(7)
    checkpoint = json.loads((folder / "checkpoints.json").read_text())[case.checkpoint]
    module = MLLMModule(
        checkpoint,
        policy=case.policy,
        warmup_ratio=0.0,
        decay="constant",
        scorers=(Generation(max_new_tokens=4), Likelihood()) if case.validates else (),
        **dict(case.options),
    )
    losses = _Losses()
    callbacks: list[Any] = [FreezeAudit(), LearningAudit(), losses]
    keeps = any(other.resumes == name for other in CASES.values())
    if keeps:
        options: dict[str, Any] = {
            "every_n_train_steps": HALF,
            "save_top_k": -1,
            "filename": "{step}",
        }
        callbacks.append(ModelCheckpoint(folder / name, **options))
    if case.skip is not None:
        callbacks.append(SkipComputations(case.skip))
    if case.validates:
        callbacks += [EvaluationReport(), ProbeEachEpoch(probes=[NearestCentroid()])]
    strategy: Any = case.strategy if processes > 1 else "auto"
    if strategy == "fsdp2" and case.evaluation != "whole":
        strategy = FSDP2Strategy(evaluation=case.evaluation)  # type: ignore[arg-type]
    trainer = Trainer(
        run=Run(name=name, root=str(folder / f"runs-{processes}"), wandb="disabled"),
        accelerator="cpu",
        devices=processes,
        strategy=strategy,
        max_steps=2 * HALF,
        max_epochs=9,
        limit_val_batches=1.0 if case.validates else 0,
        num_sanity_val_steps=0,
        val_check_interval=HALF if case.validates else None,
        check_val_every_n_epoch=None if case.validates else 1,
        gradient_clip_val=case.clip,
        enable_checkpointing=keeps,
        enable_progress_bar=False,
        callbacks=callbacks,
        log_every_n_steps=1,
    )
    resumed = None
    if case.resumes:
        resumed = str(folder / case.resumes / f"step={HALF}.ckpt")
    trainer.fit(module, datamodule=_make_data(case, checkpoint, folder), ckpt_path=resumed)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    if case.validates:
        trainer.test(module, datamodule=_make_data(case, checkpoint, folder), verbose=False)
        metrics |= {key: float(value) for key, value in trainer.callback_metrics.items()}
    state = module.state_dict()
    if trainer.is_global_zero:
        content = {
            "state": {key: value.clone() for key, value in state.items()},
            "metrics": metrics,
            "losses": losses.values,
            "fingerprint": module.backbone.fingerprint,
        }
        torch.save(content, folder / f"{name}.pt")


class _Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))


class _FewDigits(Digits):
    """Digits of which few are evaluated: so few that some processes have a batch more."""

    def load(self, split: Split) -> Sequence[Sample]:
        samples = super().load(split)
        return samples if split == "train" else samples[: BATCH + 1]


def _make_data(case: Case, checkpoint: str, folder: Path) -> Any:
    sizes: dict[str, Any] = {
        "checkpoint": checkpoint,
        "batch_size": BATCH,
        "eval_batch_size": BATCH,
    }
    if not case.texts:
        return _FewDigits(**sizes)
    rows = [conversation(f"p{k}", images=k % 2) for k in range(2 * BATCH - 1)]
    file = folder / f"talks-{os.environ.get('RANK', '0')}" / "rows.json"
    if not file.exists():
        write_llava_json(file.parent, rows)
    return LlavaJson(train=str(file), val=str(file), group_by_length=False, **sizes)


def run_all(folder: Path, processes: int, names: list[str]) -> None:
    """Run cases one after the other."""
    for name in names:
        run_case(name, folder, processes)
        gc.collect()


def single(name: str) -> str:
    """Return the name of the case that has the same result in one process as this one."""
    case = CASES[name]
    plain = replace(case, strategy="fsdp2", evaluation="whole", resumes=None)
    return next(each for each, other in CASES.items() if other == plain)


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = sys.argv[2:] or list(CASES)
    run_all(Path(sys.argv[1]), int(os.environ["WORLD_SIZE"]), chosen)
