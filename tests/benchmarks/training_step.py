"""FT-Proj: time and peak memory of a training step, against `transformers.Trainer`.

Same checkpoint, batches, trainable weights, precision, optimiser, clipping and schedule; every
measurement in a process of its own. Run it: `python tests/benchmarks/training_step.py`; with Qwen's
vocabulary and positions on three axes: `--family qwen2_5_vl --vocabulary 151936 --text-layers 4`.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_mllm.data import Digits
from lightning_mllm.families import family_of
from lightning_mllm.models.freeze import ProjectorOnly
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.optimisation.schedule import LearningRates
from lightning_mllm.trainer import Trainer
from lightning_mllm.types import Sample
from tests.benchmarks.harness import (
    MemoryMeter,
    Row,
    add_common_options,
    be_quiet,
    make_checkpoint,
    print_table,
)
from tests.benchmarks.step_clock import Clock, HFClock, LightningClock, Result, TimedHFTrainer

BASELINE = "transformers.Trainer"
RATE = 1e-3
CLIP = 1.0


def measure_ours(options: argparse.Namespace, data: Digits) -> Result:
    """Train with lightning_mllm."""
    module = MLLMModule(
        options.checkpoint,
        policy=ProjectorOnly(),
        learning_rates=LearningRates(projector=RATE),
        warmup_ratio=0.0,
        decay="constant",
        dtype="bfloat16" if options.device == "cuda" else "float32",
        gradient_checkpointing=options.gradient_checkpointing,
        scorers=(),
    )
    module.configure_model()
    clock = Clock(options)
    trainer = Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        max_steps=options.warmup + options.steps,
        gradient_clip_val=CLIP,
        callbacks=[LightningClock(clock)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    meter = MemoryMeter(options.device, _bytes(module))
    trainer.fit(module, datamodule=data)
    return clock.result(meter, module)


def measure_baseline(options: argparse.Namespace, data: Digits) -> Result:
    """Train with transformers.Trainer on the same batches."""
    on_gpu = options.device == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    model = AutoModelForImageTextToText.from_pretrained(
        options.checkpoint, dtype=dtype, attn_implementation="sdpa"
    )
    projector = family_of(model.config).projector
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(projector))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    clock = Clock(options)
    callback = HFClock(clock)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=options.batch_size,
            max_steps=options.warmup + options.steps,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            optim="adamw_torch",
            max_grad_norm=CLIP,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            gradient_checkpointing=options.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            train_sampling_strategy="sequential",
            dataloader_num_workers=options.workers,
            dataloader_persistent_workers=options.workers > 0,
            dataloader_pin_memory=on_gpu,
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        callback.trainer = TimedHFTrainer(
            model,
            arguments,
            data_collator=_collate_with(data),
            train_dataset=_items(data),
            callbacks=[callback],
        )
        meter = MemoryMeter(options.device, _bytes(model))
        callback.trainer.train()
    return clock.result(meter, model)


def _items(data: Digits) -> Any:
    """Samples with their epoch, in the order in which our loader hands them out."""
    batches = data.train_dataloader().batch_sampler.global_batches(epoch=0)
    return [(0, data.samples["train"][index]) for batch in batches for index in batch]


def _collate_with(data: Digits) -> Any:
    def collate(items: list[tuple[int, Sample]]) -> dict[str, Tensor]:
        batch = data.collator(items)
        return {**batch.model_inputs(), "labels": batch.labels}

    return collate


def _bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def measure(options: argparse.Namespace) -> Result:
    """Run one side in this process."""
    data = Digits(
        checkpoint=options.checkpoint, batch_size=options.batch_size, num_workers=options.workers
    )
    data.setup("fit")
    return {"ours": measure_ours, "baseline": measure_baseline}[options.side](options, data)


def measure_in_process(side: str, checkpoint: str) -> Result:
    """Run one side in a process of its own, with this one's options."""
    command = [sys.executable, __file__, *sys.argv[1:], "--checkpoint", checkpoint, "--side", side]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def compare(options: argparse.Namespace) -> None:
    """Measure both sides in turn and print the table."""
    ours, baseline = [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(options, Path(folder))
        for _ in range(options.repetitions):
            baseline.append(measure_in_process("baseline", checkpoint))
            ours.append(measure_in_process("ours", checkpoint))
    theirs, own = baseline[0], ours[0]
    tolerance = 2e-2 if options.device == "cuda" else 1e-5  # bfloat16, float32
    if own.trainable != theirs.trainable or not math.isclose(
        own.losses[0], theirs.losses[0], rel_tol=tolerance
    ):
        raise SystemExit(f"The two sides do not do the same work: {theirs} against {own}.")
    rows = [
        Row("seconds per step", [r.seconds for r in baseline], [r.seconds for r in ours], digits=3),
        Row("peak MiB above the model", [r.mib for r in baseline], [r.mib for r in ours]),
    ]
    precision = "bfloat16 under autocast" if options.device == "cuda" else "float32"
    notes = [
        f"FT-Proj, {own.trainable:,} trained weights, batches of {options.batch_size}, "
        f"{options.steps} timed steps, {precision}, "
        f"gradient checkpointing {'on' if options.gradient_checkpointing else 'off'}.",
        f"Loss of the first step: {theirs.losses[0]:.5f} and {own.losses[0]:.5f}; "
        f"of the last: {theirs.losses[1]:.5f} and {own.losses[1]:.5f}.",
    ]
    print_table(BASELINE, rows, device=options.device, threads=own.threads, notes=notes)


def main() -> None:
    """Read the options; with the hidden `--side`, be one of the measured processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--side", choices=("ours", "baseline"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    be_quiet()
    if options.side is None:
        compare(options)
    else:
        print(json.dumps(asdict(measure(options))))


if __name__ == "__main__":
    main()
