"""A sweep of patches: the suffix engine against plain hooks with a full forward per case.

Two prompts differ in their picture. Residual states of six segments are patched in front of each of
24 layers; of the 24 x 24 patches of the picture, 64 are called the object's, from the ninth row on.
Both sides encode each picture once. The baseline is a hook on one layer that puts the other run's
states in, and a full forward with logits at the last position only. Its time does not depend on
what is patched, so that one of its forwards per segment is timed, and their mean stands for all.
The times are CPU seconds, so that other work on the machine hardly counts.
Run it: `OMP_NUM_THREADS=1 python tests/benchmarks/patching.py`.
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

from lightning_mllm.analysis import Patch, PatchCase, Window
from lightning_mllm.analysis.forward.prompts import Prompts, prompt_log_probabilities
from lightning_mllm.analysis.forward.suffix.budget import BudgetPlan
from lightning_mllm.analysis.patching.engine.base import PromptPair
from lightning_mllm.analysis.patching.engine.rows import PatchedRows, RecordedRun
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
        handles = []
        for layer in self._layers:
            keep = lambda _, positional: found.append(positional[0])  # noqa: E731
            handles.append(layer.register_forward_pre_hook(keep))
        prompts.forward(self._backbone)
        for handle in handles:
            handle.remove()
        return found


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds that it takes."""
    started = time.process_time()
    work()
    return time.process_time() - started


class OurEngine:
    """What the suffix engine does, in the steps that are timed apart.

    Args:
        backbone: The model.
        clean: One of the two samples.
        corrupted: The other.
    """

    def __init__(
        self, backbone: Backbone, clean: MultimodalBatch, corrupted: MultimodalBatch
    ) -> None:
        self._backbone = backbone
        self._pair = PromptPair(Prompts.of(backbone, clean), Prompts.of(backbone, corrupted))
        self._runs: list[RecordedRun] = []

    @torch.no_grad()
    def run_clean(self, cases: Sequence[PatchCase]) -> None:
        """Run both prompts once; all patches are served by that."""
        pair = self._pair
        self._runs = [
            RecordedRun.of(self._backbone, each, cases) for each in (pair.corrupted, pair.clean)
        ]

    @torch.no_grad()
    def run_rows(self, cases: Sequence[PatchCase], memory: int = 2**31) -> dict[int, Tensor]:
        """Return number of a case -> log-probabilities, (batch, vocabulary), of denoising."""
        base, source = self._runs
        rows = PatchedRows(self._backbone, base.clean, source, self._pair.positions(cases), cases)
        length = self._pair.clean.batch.input_ids.shape[1]
        config = self._backbone.decoder.config
        plan = BudgetPlan.of(config, length, self._backbone.model.dtype, memory)
        found: dict[int, Tensor] = {}
        for at, group in rows.groups().items():
            size = plan.one_after_the_other(at.start, len(base.clean.real))
            for first in range(0, len(group), size):
                for numbers, logits in rows.logits(at, group[first : first + size]):
                    found |= dict(zip(numbers, prompt_log_probabilities(logits), strict=True))
        return found


def compare(
    options: argparse.Namespace, backbone: Backbone, clean: MultimodalBatch, other: MultimodalBatch
) -> tuple[list[Row], list[str]]:
    """Check that both give the same on a sample of the cases, then measure them in turn."""
    depth = len(backbone.decoder.layers)  # type: ignore[arg-type]
    plain, ours = PlainHooks(backbone, clean, other), OurEngine(backbone, clean, other)
    cases = {segment: list_cases(segment, depth) for segment in SEGMENTS}
    forwards: list[float] = []
    clean_runs: list[float] = []
    spent: dict[str, list[float]] = {segment: [] for segment in SEGMENTS}
    difference = 0.0
    for number in range(options.repetitions):
        clean_runs.append(cpu_seconds(partial(ours.run_clean, cases["last"])))
        baseline = []
        for place, segment in enumerate(SEGMENTS):
            found: dict[int, Tensor] = {}
            run_all = partial(ours.run_rows, cases[segment])
            spent[segment].append(cpu_seconds(lambda: found.update(run_all())))  # noqa: B023
            layer = (7 * place + 5 * number) % depth
            exact: list[Tensor] = []
            run_one = partial(plain.patched, 0, cases[segment][layer])
            baseline.append(cpu_seconds(lambda: exact.append(run_one())))  # noqa: B023
            difference = max(difference, float((exact[0] - found[layer]).abs().max()))
        forwards.append(sum(baseline) / len(baseline))
    if not difference <= TOLERANCE:
        raise SystemExit(f"The two differ by up to {difference:.1e}, more than {TOLERANCE:.0e}.")
    rows = []
    for segment, own in spent.items():
        rows.append(Row(segment, [depth * each for each in forwards], own, digits=2))
    theirs = [(len(SEGMENTS) * 2 * depth + 2) * each for each in forwards]
    both = [2 * sum(own) for own in zip(*spent.values(), strict=True)]
    whole = [once + twice for once, twice in zip(clean_runs, both, strict=True)]
    rows.append(Row("all six, both directions, clean passes", theirs, whole, digits=2))
    prompts = clean.prompts()
    width = backbone.decoder.config.hidden_size  # type: ignore[union-attr]
    notes = [
        f"{depth} layers of width {width}, {options.attention} attention, a prompt of "
        f"{prompts.input_ids.shape[1]} positions; CPU seconds of patches in front of each layer.",
        "Of a segment: one direction, on neither side with the clean passes, which serve all of "
        f"them ({min(clean_runs):.2f} s for both). Of all six: twice that, and with them.",
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
