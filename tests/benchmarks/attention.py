"""Shares of attention against the pass that they look into, and against eager attention.

Timed are whole passes through tower and layers, without the head: a clean one with sdpa; the same
while the attention of question and last position is shared out, rows made; and one with eager
attention that returns all weights, as `output_attentions` does. They alternate. On the CPU the time
is the processor's, which other work on the machine hardly spoils. Before anything is timed, ours
are held against the eager weights. Run it: `python tests/benchmarks/attention.py`.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_mllm.analysis import AttentionShares
from lightning_mllm.analysis.attention.rows import AttentionRow
from lightning_mllm.analysis.core.per_question import PerQuestionAnswer
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers, run_layers_uncompiled
from lightning_mllm.types import Segment
from tests.benchmarks.harness import Row, be_quiet, print_table
from tests.benchmarks.knockout import PRESETS, make_backbone, make_batch, timed

BASELINE = "the other pass"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def run_clean(backbone: Backbone, batch: MultimodalBatch) -> None:
    """Run the model, and look at nothing."""
    with torch.no_grad():
        run_layers_uncompiled(backbone, batch)


def run_shares(backbone: Backbone, batch: MultimodalBatch) -> list[list[AttentionRow]]:
    """Return the rows of each question."""
    questions = [PerQuestionAnswer(each, "", each, False, None) for each in batch.sample_ids]
    with torch.no_grad():
        return AttentionShares().measure(backbone, batch, questions)


def run_eager(backbone: Backbone, batch: MultimodalBatch) -> tuple[torch.Tensor, ...]:
    """Return the weights of all layers, (batch, heads, sequence, sequence) each."""
    with torch.no_grad():
        output = backbone.model.base_model(
            **batch.model_inputs(), output_attentions=True, use_cache=False
        )
    weights: tuple[torch.Tensor, ...] = output.attentions
    return weights


def check(backbone: Backbone, eager: Backbone, batch: MultimodalBatch) -> float:
    """Return how far our shares of the image are from those of eager weights."""
    every = run_eager(eager, batch)
    image, off = batch.spans[Segment.IMAGE], 0.0
    for number, rows in enumerate(run_shares(backbone, batch)):
        looks = batch.spans[Segment.LAST][number]
        for row in rows:
            if row.target == "last" and row.head >= 0:
                weights = every[row.layer][number, row.head][looks][0]
                off = max(off, abs(float(weights[image[number]].sum()) - row.image))
    if not off <= TOLERANCE[backbone.model.dtype]:
        raise SystemExit(f"Shares are off by up to {off:.1e}.")
    return off


def take_time(work: Callable[[], object], device: str) -> float:
    """Return the seconds that it takes; on the CPU those of this process, on all its threads."""
    if device != "cpu":
        return timed(work, device)
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Read the options, compare and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="on cuda, weights are in bfloat16"
    )
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), default="medium", help="shape of the decoder"
    )
    parser.add_argument("--questions", type=int, default=1, help="samples in the batch")
    parser.add_argument("--repetitions", type=int, default=7, help="rounds of measurements")
    options = parser.parse_args()
    options.attention = "sdpa"
    be_quiet()
    with tempfile.TemporaryDirectory() as folder:
        backbone, checkpoint = make_backbone(options, Path(folder))
        batch = make_batch(options, checkpoint)
    eager = copy.deepcopy(backbone)
    eager.model.set_attn_implementation("eager")
    off = check(backbone, eager, batch)
    works = {
        "clean": lambda: run_clean(backbone, batch),
        "ours": lambda: run_shares(backbone, batch),
        "eager": lambda: run_eager(eager, batch),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.repetitions):
        for name, work in works.items():
            times[name].append(take_time(work, options.device))
    ratios = np.array(times["ours"]) / np.array(times["clean"])
    width = f"{len(decoder_layers(backbone))} layers of width {PRESETS[options.preset][0]}"
    print_table(
        BASELINE,
        [
            Row("seconds of a pass: clean, sdpa", times["clean"], times["ours"], digits=3),
            Row("seconds of a pass: eager, all weights", times["eager"], times["ours"], digits=3),
        ],
        device=options.device,
        threads=torch.get_num_threads(),
        notes=[
            f"{width}, {batch.input_ids.shape[1]} tokens, {len(batch)} sample(s). Shares differ "
            f"from those of eager weights by up to {off:.1e}.",
            f"With shares a pass takes {median(ratios):.2f} times as long as a clean one "
            f"({ratios.min():.2f} to {ratios.max():.2f}).",
        ],
    )


if __name__ == "__main__":
    main()
