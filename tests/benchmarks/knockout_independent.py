"""The same knockouts, written with plain nnsight: do they give the same numbers?

nnsight is none of our dependencies. In an environment of its own, so that it changes nothing in
yours:

    python -m venv --system-site-packages nnsight-check
    nnsight-check/bin/pip install "nnsight>=0.8,<0.9"
    nnsight-check/bin/python tests/benchmarks/knockout_independent.py

It shares no code with ours that blocks anything, and takes another way: instead of a mask before
the softmax it sets the blocked weights to zero behind it, and divides the others by their sum. The
model is the test-bed's, in float32, the questions its own; attention is eager, the only one that
has weights to edit.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

os.environ["PIP_NO_INDEX"] = (
    "1"  # a tool that installs packages by itself, as one of its kind does, finds none
)
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_mllm.analysis import Block, Case, ReferenceEngine, SuffixEngine, Windows
from lightning_mllm.analysis.core.positions import mask_positions
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.testbed import checkpoint
from lightning_mllm.testbed.datamodules import WorldQuestions
from tests.benchmarks.harness import be_quiet

TOLERANCE = 1e-4
BLOCKS = (
    "question->last",
    "image->last",
    "last->last",
    "image->question",
    "image object->question",
    "image other->question",
)


def keep_of(case: Case, prompts: MultimodalBatch, layer: int) -> Tensor:
    """Return (batch, 1, rows, keys): 0 where a weight is to be taken away in this layer, else 1."""
    length = prompts.input_ids.shape[1]
    keep = torch.ones(len(prompts), 1, length, length)
    if case.window.start <= layer < case.window.stop:
        for sample in range(len(prompts)):
            for row in mask_positions(prompts.spans, case.block.target)[sample].nonzero():
                keep[sample, 0, row, mask_positions(prompts.spans, case.block.source)[sample]] = 0.0
    return keep


@torch.no_grad()
def by_nnsight(backbone: Backbone, batch: MultimodalBatch, case: Case | None) -> Tensor:
    """Return (batch, vocabulary) log-probabilities at the last position; clean without a case."""
    from nnsight import NNsight  # type: ignore[import-not-found,unused-ignore]

    prompts = batch.prompts()
    depth = len(backbone.decoder.layers)  # type: ignore[arg-type]
    keeps = [] if case is None else [keep_of(case, prompts, layer) for layer in range(depth)]
    wrapped: Any = NNsight(backbone.model)
    with wrapped.trace(**prompts.model_inputs(), use_cache=False, logits_to_keep=1):
        for layer, keep in enumerate(keeps):
            attention = wrapped.model.language_model.layers[
                layer
            ].self_attn.source.attention_interface_1
            softmax = attention.source.nn_functional_softmax_0
            kept = softmax.output * keep
            softmax.output = kept / kept.sum(dim=-1, keepdim=True)
        logits = wrapped.lm_head.output.save()
    found: Tensor = logits[:, -1].log_softmax(-1)
    return found


def compare(backbone: Backbone, batch: MultimodalBatch, cases: Sequence[Case]) -> Table:
    """Return the table of differences.

    Raises:
        SystemExit: They are larger than rounding explains.
    """
    started = time.perf_counter()
    clean = by_nnsight(backbone, batch, None)
    theirs = torch.stack([by_nnsight(backbone, batch, case) for case in cases], dim=1)
    ids = clean.argmax(1, keepdim=True)
    took = time.perf_counter() - started
    effect = float(
        (theirs - clean[:, None]).gather(2, ids[:, None].expand(-1, len(cases), -1)).abs().max()
    )
    table = Table("engine", "largest difference of a log-probability", "seconds", box=MARKDOWN)
    table.add_row(f"nnsight {version('nnsight')}", f"(largest effect {effect:.2f})", f"{took:.1f}")
    worst = 0.0
    for engine in (ReferenceEngine(), SuffixEngine(strict=True)):
        started = time.perf_counter()
        ours = engine.run(backbone, batch, cases)
        took = time.perf_counter() - started
        expected = theirs.gather(2, ours.ids[:, None].expand(-1, len(cases), -1))
        difference = float((ours.logprobs - expected).abs().max())
        worst = max(
            worst,
            difference,
            float((ours.clean_logprobs - clean.gather(1, ours.ids)[:, None]).abs().max()),
        )
        table.add_row(engine.name, f"{difference:.1e}", f"{took:.1f}")
    if not worst <= TOLERANCE:
        raise SystemExit(f"nnsight and we differ by up to {worst:.1e}, more than {TOLERANCE:.0e}.")
    return table


def main() -> None:
    """Read the options, compare and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=4, help="prompts in the batch")
    parser.add_argument(
        "--cases", type=int, default=36, help="block and window, drawn from all; 36 are all"
    )
    parser.add_argument("--width", type=int, default=3, help="layers in a window")
    options = parser.parse_args()
    be_quiet()
    installed = {each.metadata["Name"]: each.version for each in distributions()}
    path = checkpoint()
    backbone = Backbone.from_pretrained(path, attention="eager")
    depth = len(backbone.decoder.layers)  # type: ignore[arg-type]
    data = WorldQuestions(checkpoint=path, parts=["seen"], eval_batch_size=options.questions)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    cases = [
        Case(Block.parse(block), window)
        for block in BLOCKS
        for window in Windows(options.width).of(depth)
    ]
    cases = random.Random(0).sample(cases, min(options.cases, len(cases)))
    table = compare(backbone, batch, cases)
    if installed != {each.metadata["Name"]: each.version for each in distributions()}:
        raise SystemExit("Packages were installed or changed while this ran.")
    console = Console(width=120, highlight=False)
    console.print(
        f"{len(batch)} questions, {len(cases)} cases, {depth} layers; torch {torch.__version__}"
    )
    console.print(table)


if __name__ == "__main__":
    main()
