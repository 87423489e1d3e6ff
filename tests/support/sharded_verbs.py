"""Analyses, extracted states and answers of one tiny model, in one process or in several.

As a program, each of its processes does all of it under `fsdp2`, with whole and with sharded
weights: `torchrun --nproc_per_node 2 -m tests.support.sharded_verbs FOLDER`, where `FOLDER` has
`checkpoint.txt`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from lightning_mllm.analysis import AnswerLens, Bootstrap, ComputationSkipping, InformationFlow
from lightning_mllm.callbacks import AnswerTable
from lightning_mllm.data import LlavaJson
from lightning_mllm.fsdp2_strategy import FSDP2Strategy
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.probing import Point
from lightning_mllm.run import Run
from lightning_mllm.trainer import Trainer
from tests.support.command_line import conversation, write_llava_json

BATCH = 4  # over all processes
COUNT = 9  # samples: the last batch has one, so one of two processes has one batch more
FEW = Bootstrap(resamples=20)


def run_verbs(folder: Path, processes: int, evaluation: Any = None) -> None:
    """Analyse, extract and answer; the files are in `<evaluation>/` in the folder."""
    checkpoint = (folder / "checkpoint.txt").read_text()
    name = evaluation or "alone"
    trainer = Trainer(
        run=Run(name=name, root=str(folder), wandb="disabled"),
        accelerator="cpu",
        devices=processes,
        strategy=FSDP2Strategy(evaluation=evaluation) if evaluation else "auto",
        enable_progress_bar=False,
        callbacks=[AnswerTable()],
    )
    torch.manual_seed(0)
    module = MLLMModule(checkpoint)
    file = str(folder / f"questions-{os.environ.get('RANK', '0')}" / "rows.json")
    rows = [conversation(f"q{k}", kind="any") for k in range(COUNT)]
    if not Path(file).exists():
        write_llava_json(Path(file).parent, rows)
    data = LlavaJson(
        train=file, val=file, test=file, checkpoint=checkpoint, eval_batch_size=BATCH, batch_size=4
    )
    analyses: Any = [
        InformationFlow(blocks=["question->last"], correct_only=False, bootstrap=FEW),
        AnswerLens(correct_only=False, bootstrap=FEW),
        ComputationSkipping(shares=(0.0, 0.5), starts=(0,), bootstrap=FEW),
    ]
    trainer.analyze(module, data, analysis=analyses)
    points = [Point("post"), Point("image", layer=1)]
    trainer.extract(module, data, output=str(folder / name / "states"), points=points)
    trainer.predict(module, datamodule=data, split="test", return_predictions=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in ("whole", "sharded"):
        run_verbs(Path(sys.argv[1]), int(os.environ["WORLD_SIZE"]), chosen)
