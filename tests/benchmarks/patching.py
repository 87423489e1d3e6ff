"""A sweep of patches: the suffix engine against plain hooks with a full forward per case.

Two prompts differ in their picture. Residual states of six segments are patched in front of each of
24 layers, in both directions; of the 24 x 24 patches of the picture, 64 are called the object's,
from the ninth row on. Both sides encode each picture once. The baseline is a hook on one layer that
puts the other run's states in, and a full forward with logits at the last position only. Its time
does not depend on what is patched, so that some of its forwards are timed, taken in turn from all
segments, and their mean stands for all. The times are CPU seconds, so that other work on the
machine does not count. Run it: `OMP_NUM_THREADS=1 python tests/benchmarks/patching.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_mllm.analysis import Patch, PatchCase, SuffixPatching, Window
from lightning_mllm.analysis.forward.prompts import Prompts, prompt_log_probabilities
from lightning_mllm.batches import MultimodalBatch, TokenSpans, map_image
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Segment
from tests.benchmarks import knockout
from tests.benchmarks.harness import Row, be_quiet, print_table

BASELINE = "plain hooks, full forwards"
SEGMENTS = ("image object", "image other", "image", "question", "suffix", "last")
SIDE, FIRST_ROW, OBJECT = 24, 8, 8  # patches: of the picture, above the object, and of its side
TOLERANCE = 1e-3


def make_pair(
    options: argparse.Namespace, checkpoint: str
) -> tuple[MultimodalBatch, MultimodalBatch]:
    """Return a question about two pictures of noise, with an object of 8 x 8 patches."""
    batch = knockout.make_batch(options, checkpoint)
    image = batch.spans[Segment.IMAGE]
    grid = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    grid[FIRST_ROW : FIRST_ROW + OBJECT, FIRST_ROW : FIRST_ROW + OBJECT] = True
    part = torch.zeros_like(image).masked_scatter(image, grid.flatten())
    regions = {Segment.IMAGE_OBJECT: part, Segment.IMAGE_OTHER: image & ~part}
    batch = replace(batch, spans=TokenSpans({**batch.spans.masks, **regions}))
    other = tuple(map_image(torch.neg, each) for each in batch.images)
    return batch, replace(batch, images=other, sample_ids=("other",))


def list_cases(segment: str, depth: int) -> list[PatchCase]:
    """Return the patches of a segment in front of each layer."""
    patch = Patch.parse(f"{segment} @ residual")
    return [PatchCase(patch, Window(layer, layer, layer + 1)) for layer in range(depth)]


class PlainHooks:
    """The same patches with nothing but hooks of torch.

    Args:
        backbone: The model.
        clean: One of the two samples.
        corrupted: The other.
    """

    def __init__(
        self, backbone: Backbone, clean: MultimodalBatch, corrupted: MultimodalBatch
    ) -> None:
        self._backbone = backbone
        self._layers: list[nn.Module] = list(backbone.decoder.layers)  # type: ignore[arg-type]
        self._prompts = [Prompts.of(backbone, each) for each in (corrupted, clean)]
        self._states = [self._record(prompts) for prompts in self._prompts]

    @torch.no_grad()
    def patched(self, direction: int, case: PatchCase) -> Tensor:
        """Return the log-probabilities at the last position, (batch, vocabulary)."""
        base, source = self._prompts[direction], self._states[1 - direction]
        layer = case.window.start
        (segment,) = case.patch.positions.segments  # type: ignore[union-attr]
        where = base.batch.spans[segment][..., None]

        def put(_: nn.Module, positional: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (torch.where(where, source[layer], positional[0]), *positional[1:])

        handle = self._layers[layer].register_forward_pre_hook(put)
        try:
            return prompt_log_probabilities(base.forward(self._backbone)[0])
        finally:
            handle.remove()

    @torch.no_grad()
    def _record(self, prompts: Prompts) -> list[Tensor]:
        """Return what enters each layer."""
        found: list[Tensor] = []
        handles = [
            layer.register_forward_pre_hook(lambda _, positional: found.append(positional[0]))
            for layer in self._layers
        ]
        prompts.forward(self._backbone)
        for handle in handles:
            handle.remove()
        return found


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds that it takes."""
    started = time.process_time()
    work()
    return time.process_time() - started


def compare(
    options: argparse.Namespace, backbone: Backbone, clean: MultimodalBatch, other: MultimodalBatch
) -> tuple[list[Row], list[str]]:
    """Check that both give the same on a sample of the cases, then measure them in turn."""
    depth = len(backbone.decoder.layers)  # type: ignore[arg-type]
    plain, engine = PlainHooks(backbone, clean, other), SuffixPatching(strict=True)
    ids = torch.arange(64)[None]

    def run(cases: Sequence[PatchCase]) -> Tensor:
        return engine.run(backbone, clean, other, cases, ids).logprobs

    picked = [list_cases(segment, depth)[7 * k % depth] for k, segment in enumerate(SEGMENTS)]
    exact = torch.stack([plain.patched(1, case)[:, :64] for case in picked], dim=1)
    difference = float((run(picked)[1] - exact).abs().max())
    if not difference <= TOLERANCE:
        raise SystemExit(f"The two differ by up to {difference:.1e}, more than {TOLERANCE:.0e}.")
    once = [PatchCase(Patch.parse("last @ residual"), Window(depth - 1, depth - 1, depth))]
    forwards, clean_runs, ours = [], [], {name: list[float]() for name in (*SEGMENTS, "all six")}
    every = [case for segment in SEGMENTS for case in list_cases(segment, depth)]
    for number in range(options.repetitions):
        timed = [picked[(2 * number + k) % len(picked)] for k in range(2)]
        spent = [cpu_seconds(partial(plain.patched, k, case)) for k, case in enumerate(timed)]
        forwards.append(sum(spent) / len(spent))
        clean_runs.append(cpu_seconds(partial(run, once)))
        for segment in SEGMENTS:
            cases = list_cases(segment, depth)
            ours[segment].append(cpu_seconds(partial(run, cases)) - clean_runs[-1])
        ours["all six"].append(cpu_seconds(partial(run, every)))
    rows = []
    for name, own in ours.items():
        cells = len(every) if name == "all six" else depth
        extra = 2 if name == "all six" else 0  # the baseline records both runs, too
        rows.append(Row(name, [(2 * cells + extra) * each for each in forwards], own, digits=2))
    prompts = clean.prompts()
    width = backbone.decoder.config.hidden_size  # type: ignore[union-attr]
    notes = [
        f"{depth} layers of width {width}, {options.attention} attention, a prompt of "
        f"{prompts.input_ids.shape[1]} positions; patches in front of each layer, both directions.",
        "CPU seconds. Of single segments without the two clean passes that serve all of them "
        f"({min(clean_runs):.2f} s, pictures encoded); of all six with them, on both sides.",
        f"Largest difference of a log-probability {difference:.1e}.",
    ]
    return rows, notes


def main() -> None:
    """Read the options, compare and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset", choices=tuple(knockout.PRESETS), default="medium", help="shape of the decoder"
    )
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--repetitions", type=int, default=3, help="pairs of measurements")
    options = parser.parse_args()
    options.device, options.questions = "cpu", 1
    be_quiet()
    with tempfile.TemporaryDirectory() as folder:
        backbone, checkpoint = knockout.make_backbone(options, Path(folder))
        rows, notes = compare(options, backbone, *make_pair(options, checkpoint))
    print_table(BASELINE, rows, device="cpu", threads=torch.get_num_threads(), notes=notes)


if __name__ == "__main__":
    main()
