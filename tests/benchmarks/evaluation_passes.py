"""Evaluating a batch: one pass for loss, likelihood and answers, against one pass for each.

The baseline computes each prompt three times, as three tools would that know nothing of each other:
the loss over prompts and answers, `Likelihood` by itself, and the answers by transformers'
`generate`. The batches are of `Digits`, made before anything is timed. Run it:
`python tests/benchmarks/evaluation_passes.py`; it measures the test-bed's model, which answers as
trained, and a wider one with random weights, whose answers are cut at `--max-new-tokens`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Digits
from lightning_mllm.evaluation import AnswerParser, Evaluator, Generation, Likelihood
from lightning_mllm.evaluation.decoding import decoding_end_ids
from lightning_mllm.evaluation.prompt_pass import PromptPass
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.loss import answer_loss
from lightning_mllm.testbed import checkpoint as testbed_checkpoint
from lightning_mllm.types import LabelSet
from tests.benchmarks.harness import (
    MemoryMeter,
    Row,
    add_common_options,
    be_quiet,
    make_checkpoint,
    print_table,
    synchronise,
)

BASELINE = "one pass for each"
TOLERANCE = 1e-6  # of the loss, relative


@dataclass(frozen=True)
class Evaluated:
    """What is known of a batch after its evaluation."""

    loss: Tensor
    by_likelihood: Tensor
    by_generation: Tensor


@dataclass(frozen=True)
class EvaluationTask:
    """A model, the batches it is evaluated on, and how.

    Attributes:
        backbone: The model, in evaluation mode.
        tokenizer: The model's.
        batches: Of labelled pictures.
        labels: The classes.
        limit: Number of tokens at which answers are cut.
    """

    backbone: Backbone
    tokenizer: Any
    batches: list[MultimodalBatch]
    labels: LabelSet
    limit: int


def evaluate_in_one_pass(task: EvaluationTask, batch: MultimodalBatch) -> Evaluated:
    """Evaluate a batch as `validation_step` does."""
    evaluator = Evaluator([Generation(max_new_tokens=task.limit), Likelihood()])
    evaluator.prepare(task.labels, ())
    asked = PromptPass(task.backbone.model, batch, with_answers=True)
    loss = answer_loss(task.backbone, batch, with_greedy=True, hidden=asked.hidden)
    found = evaluator.answer(asked, task.tokenizer).predictions
    return Evaluated(loss.mean, found["likelihood"].predicted, found["generation"].predicted)


def evaluate_in_three(task: EvaluationTask, batch: MultimodalBatch) -> Evaluated:
    """Evaluate a batch with a pass over its prompts for each of loss, likelihood and answers."""
    model: Any = task.backbone.model
    loss = answer_loss(task.backbone, batch, with_greedy=True)
    prompts = batch.prompts()
    tokens = model.generate(
        **prompts.model_inputs(),
        max_new_tokens=task.limit,
        do_sample=False,
        pad_token_id=prompts.pad_id,
        eos_token_id=decoding_end_ids(model, prompts),
    )[:, prompts.input_ids.shape[1] :]
    parser = AnswerParser(task.labels.names)
    texts = task.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    generated = torch.tensor([parser.parse(text.strip()) for text in texts], device=tokens.device)
    scored = Likelihood().predict(model, task.tokenizer, batch, task.labels)
    return Evaluated(loss.mean, scored.predicted, generated)


def check_equal(task: EvaluationTask) -> None:
    """Refuse to time two ways that differ."""
    for batch in task.batches:
        ours, theirs = evaluate_in_one_pass(task, batch), evaluate_in_three(task, batch)
        off = float((ours.loss / theirs.loss - 1).abs())
        same = torch.equal(ours.by_likelihood, theirs.by_likelihood)
        if off > TOLERANCE or not same or not torch.equal(ours.by_generation, theirs.by_generation):
            raise SystemExit(f"The two ways differ: the loss by {off:.1e}, or the predictions.")


def make_task(
    options: argparse.Namespace, checkpoint: str, limit: int, dtype: torch.dtype
) -> EvaluationTask:
    """Load the model and make the batches."""
    data = Digits(checkpoint=checkpoint, eval_batch_size=options.images)
    data.setup("test")
    assert data.label_set is not None
    backbone = Backbone.from_pretrained(checkpoint, dtype=dtype)
    backbone.model.to(options.device)
    batches: list[MultimodalBatch] = []
    for batch in data.plain_dataloader("test"):
        batches.append(batch.to(options.device))
        if len(batches) == options.batches:
            break
    return EvaluationTask(backbone, data.processor.tokenizer, batches, data.label_set, limit)


@torch.inference_mode()
def compare(options: argparse.Namespace, name: str, task: EvaluationTask) -> list[Row]:
    """Measure both ways in turn."""
    ways: dict[str, Callable[[EvaluationTask, MultimodalBatch], Evaluated]] = {
        "baseline": evaluate_in_three,
        "ours": evaluate_in_one_pass,
    }
    weights = sum(each.numel() * each.element_size() for _, each in task.backbone.parameters())
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    mib: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.repetitions):
        for way, evaluate in ways.items():
            meter = MemoryMeter(options.device, weights)
            synchronise(options.device)
            started = time.process_time() if options.device == "cpu" else time.perf_counter()
            for batch in task.batches:
                evaluate(task, batch)
            synchronise(options.device)
            ended = time.process_time() if options.device == "cpu" else time.perf_counter()
            count = sum(map(len, task.batches))
            seconds[way].append(1000 * (ended - started) / count)
            mib[way].append(meter.peak())
    return [
        Row(f"{name}: ms per picture", seconds["baseline"], seconds["ours"], digits=1),
        Row(f"{name}: peak MiB above the model", mib["baseline"], mib["ours"]),
    ]


def main() -> None:
    """Read the options, compare on both models and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser)
    parser.add_argument("--images", type=int, default=16, help="pictures in a batch")
    parser.add_argument("--batches", type=int, default=4, help="batches per measurement")
    parser.add_argument(
        "--max-new-tokens", type=int, default=4, help="length of answers of random weights"
    )
    options = parser.parse_args()
    be_quiet()
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    rows: list[Row] = []
    notes = ["On the CPU the time is CPU time."]
    with tempfile.TemporaryDirectory() as folder:
        for name, checkpoint, limit in (
            ("test-bed", testbed_checkpoint(), 32),
            ("wider", make_checkpoint(options, Path(folder)), options.max_new_tokens),
        ):
            task = make_task(options, checkpoint, limit, dtype)
            if dtype == torch.float32:
                with torch.inference_mode():
                    check_equal(task)
            prompt = task.batches[0].prompts().input_ids.shape[1]
            notes.append(f"{name}: prompts of {prompt} tokens, {len(task.labels)} classes.")
            rows += compare(options, name, task)
    print_table(BASELINE, rows, device=options.device, threads=torch.get_num_threads(), notes=notes)


if __name__ == "__main__":
    main()
