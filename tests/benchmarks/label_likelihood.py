"""Scoring all class names: the shared prefix of `Likelihood`, against one full forward per label.

The baseline is what a loop over the labels does: the Hugging Face model reads image, prompt and
label anew for each label, with all images of the batch at once. To be fair to it, it makes logits
at the label's positions only (`logits_to_keep`). Run it:
`python tests/benchmarks/label_likelihood.py`.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_mllm.batches import MultimodalBatch, join_images
from lightning_mllm.data import Digits
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.evaluation import Likelihood
from lightning_mllm.types import LabelSet, Sample
from tests.benchmarks.harness import (
    MemoryMeter,
    Row,
    add_common_options,
    be_quiet,
    make_checkpoint,
    print_table,
    synchronise,
)

BASELINE = "one forward per label"
TOLERANCE = 1e-4
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")


@dataclass(frozen=True)
class Task:
    """A batch of images, the model and the classes.

    Attributes:
        model: In evaluation mode.
        tokenizer: The model's.
        batch: Its prompts list all classes.
        labels: The classes.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch: MultimodalBatch
    labels: LabelSet


class _Renamed(Digits):
    """The scans of Digits under as many class names as asked for; each image is scored for all."""

    names: Sequence[str] = ()

    def load(self, split: Split) -> Sequence[Sample]:
        samples = super().load(split)
        return [
            replace(sample, label=self.names[k % len(self.names)])
            for k, sample in enumerate(samples)
        ]


@torch.no_grad()
def score_by_shared_prefix(task: Task) -> Tensor:
    """Return (images, labels) log-probabilities; by lightning_mllm."""
    scores = Likelihood().predict(task.model, task.tokenizer, task.batch, task.labels).scores
    assert scores is not None
    return scores


@torch.no_grad()
def score_one_by_one(task: Task) -> Tensor:
    """Return (images, labels) log-probabilities; a forward of the Hugging Face model per label."""
    prompts = task.batch.prompts()
    scores = []
    for token_ids in task.labels.token_ids:
        label = torch.tensor(token_ids, device=prompts.input_ids.device).expand(len(prompts), -1)
        mask = torch.cat([prompts.attention_mask, torch.ones_like(label)], dim=1)
        logits = task.model(
            input_ids=torch.cat([prompts.input_ids, label], dim=1),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            **join_images(prompts.images),
            use_cache=False,
            logits_to_keep=len(token_ids) + 1,
        ).logits[:, :-1]  # (images, label, vocabulary): prompts are padded on the left
        log_probabilities = logits.float().log_softmax(-1).gather(2, label[..., None])
        scores.append(log_probabilities.sum(dim=(1, 2)))
    return torch.stack(scores, dim=1)


def largest_difference(task: Task) -> float:
    """Return by how much the scores of the two ways differ at most.

    Raises:
        SystemExit: More than rounding explains.
    """
    difference = float((score_by_shared_prefix(task) - score_one_by_one(task)).abs().max())
    if not difference <= TOLERANCE:
        raise SystemExit(
            f"{len(task.labels)} labels: scores differ by up to {difference:.1e} in float32."
        )
    return difference


def compare(
    options: argparse.Namespace, checkpoint: str, classes: int, dtype: torch.dtype
) -> tuple[list[Row], str]:
    """Check in float32 that both ways give the same scores, then measure them in turn."""
    difference = largest_difference(make_task(options, checkpoint, classes, torch.float32))
    task = make_task(options, checkpoint, classes, dtype)
    ways: dict[str, Callable[[Task], Tensor]] = {
        "baseline": score_one_by_one,
        "ours": score_by_shared_prefix,
    }
    mib = {name: [peak(way, task, options.device)] for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repetitions):
        for name, way in ways.items():
            seconds[name].append(duration(way, task, options.device) / options.images)
    rows = [
        Row(f"{classes} labels: seconds per image", seconds["baseline"], seconds["ours"], digits=3),
        Row(f"{classes} labels: peak MiB above the model", mib["baseline"], mib["ours"]),
    ]
    tokens = sum(map(len, task.labels.token_ids))
    return rows, (
        f"{classes} labels: {tokens} label tokens behind a prompt of "
        f"{task.batch.prompts().input_ids.shape[1]}; "
        f"largest difference of a score in float32 {difference:.1e}."
    )


def make_task(
    options: argparse.Namespace, checkpoint: str, classes: int, dtype: torch.dtype
) -> Task:
    """Load the model and collate a batch of images that ask for the classes."""
    names = [" ".join(words) for words in itertools.product(NUMBERS, COLOURS, SHAPES)]
    if not 1 <= classes <= len(names):
        raise SystemExit(f"--labels {classes} is not between 1 and {len(names)}.")
    data = _Renamed(checkpoint=checkpoint, eval_batch_size=options.images)
    data.names = random.Random(0).sample(names, classes)
    data.setup("test")
    assert data.label_set is not None
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoint, dtype=dtype, attn_implementation="sdpa"
    )
    batch = next(iter(data.test_dataloader())).to(options.device)
    return Task(model.to(options.device).eval(), data.processor.tokenizer, batch, data.label_set)


def duration(way: Callable[[Task], Tensor], task: Task, device: str) -> float:
    """Return the seconds that one scoring of the batch takes."""
    synchronise(device)
    started = time.perf_counter()
    way(task)
    synchronise(device)
    return time.perf_counter() - started


def peak(way: Callable[[Task], Tensor], task: Task, device: str) -> float:
    """Return the peak memory of one scoring in MiB, the model's weights not counted."""
    weights = sum(
        parameter.numel() * parameter.element_size() for parameter in task.model.parameters()
    )
    meter = MemoryMeter(device, weights)
    way(task)
    return meter.peak()


def main() -> None:
    """Read the options, compare for each number of labels and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser)
    parser.add_argument(
        "--labels", type=int, nargs="+", default=[10, 47, 100], help="numbers of class names"
    )
    parser.add_argument("--images", type=int, default=2, help="images in the batch")
    options = parser.parse_args()
    be_quiet()
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    rows: list[Row] = []
    notes = [f"Batches of {options.images} images, timed in {str(dtype).removeprefix('torch.')}."]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(options, Path(folder))
        for classes in options.labels:
            measured, note = compare(options, checkpoint, classes, dtype)
            rows += measured
            notes.append(note)
    print_table(BASELINE, rows, device=options.device, threads=torch.get_num_threads(), notes=notes)


if __name__ == "__main__":
    main()
