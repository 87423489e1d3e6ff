"""All-pairs alignment curves, streamed, against saving every hidden state and comparing each pair.

The baseline is what research code does: a forward with `output_hidden_states`, all states of all
samples in one file, which is read again, and a loop over all pairs of samples for each layer. Both
find the same curves (perceptual against textual tokens, at the same layer and from the LLM's input,
and within each set; by token means and by MeanSim), which is checked; ours come with intervals, and
with what each sample measures of itself. The peak memory of the streamed analysis, with all its
default measures, is taken over growing numbers of samples of a small model.
Run it: `python tests/benchmarks/alignment.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_mllm.analysis.alignment.experiment import Alignment
from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Digits
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.tiny import TinySize, build_tiny_checkpoint
from tests.benchmarks.harness import (
    MemoryMeter,
    Row,
    add_common_options,
    be_quiet,
    make_checkpoint,
    print_table,
    synchronise,
)

BASELINE = "save everything"
COMPARISONS = ("ima_same_layer", "ima_input", "perceptual", "textual")
CURVES = tuple(f"{comparison} {mode}" for comparison in COMPARISONS for mode in ("avg", "mean"))
SMALL = TinySize(image_size=70, patch_size=7)  # 100 patches


@dataclass(frozen=True)
class Outcome:
    """Curves, (curves, layers), the seconds that they took and the bytes left on the disk."""

    curves: Tensor
    seconds: float
    size: int


@torch.no_grad()
def save_everything(backbone: Backbone, batches: list[MultimodalBatch], folder: Path) -> Outcome:
    """Save all states of perceptual and textual tokens, read them, and loop over pairs of samples.

    `output_hidden_states` has the last state normed: it is left out of the comparison.
    """
    started = time.perf_counter()
    samples: list[list[tuple[Tensor, Tensor]]] = []
    for batch in batches:
        hidden = backbone.model(**batch.model_inputs(), output_hidden_states=True).hidden_states
        masks = TokenSets().of(batch)
        for row, (perceptual, textual) in enumerate(masks):
            samples.append(
                [(layer[row][perceptual].cpu(), layer[row][textual].cpu()) for layer in hidden]
            )
    torch.save(samples, folder / "states.pt")
    samples = torch.load(folder / "states.pt")
    curves = []
    for layer in range(len(samples[0]) - 1):
        tokens = [sample[layer] for sample in samples]
        at_input = [sample[0] for sample in samples]
        across = [
            [compare(one[0], other[1]) for one, other in product(side, tokens)]
            for side in (tokens, at_input)
        ]
        within = [
            [compare(one[k], other[k]) for one, other in combinations(tokens, 2)] for k in (0, 1)
        ]
        curves.append(
            [
                sum(pair[k] for pair in each) / len(each)
                for each in (*across, *within)
                for k in (0, 1)
            ]
        )
    seconds = time.perf_counter() - started
    return Outcome(torch.tensor(curves).T, seconds, (folder / "states.pt").stat().st_size)


def compare(perceptual: Tensor, textual: Tensor) -> tuple[float, float]:
    """Return the cosine of the token means, and the mean cosine of the tokens."""
    means = cosine_similarity(perceptual.float().mean(0), textual.float().mean(0), dim=0)
    tokens = normalize(perceptual.float(), dim=1) @ normalize(textual.float(), dim=1).T
    return float(means), float(tokens.mean())


def stream(backbone: Backbone, batches: list[MultimodalBatch], folder: Path) -> Outcome:
    """Find the same curves, with intervals, by sums."""
    started = time.perf_counter()
    analysis = Alignment(gaps=(), pair_budget=0, sets=TokenSets(sink_ratio=None))
    analysis.prepare(None, folder)  # type: ignore[arg-type]  # no words are read
    for batch in batches:
        analysis.update(backbone, batch)
    analysis.merge()
    result = analysis.compute()
    curves = [
        result.at(state="residual", tokens="all", measure=name, statistic="value")[:-1]
        for name in CURVES
    ]
    seconds = time.perf_counter() - started
    return Outcome(
        torch.tensor(curves), seconds, sum(path.stat().st_size for path in folder.iterdir())
    )


def many_batches(checkpoint: str, count: int, size: int, device: str) -> Iterator[MultimodalBatch]:
    """Yield batches of pictures of noise, one at a time."""
    data = Digits(checkpoint=checkpoint, eval_batch_size=size)
    data.setup("test")
    batch = data.eval_collator([(0, sample) for sample in data.samples["test"][:size]])
    for start in range(0, count, size):
        rows = batch.take(range(min(size, count - start)))
        noise = tuple(
            {"pixel_values": torch.randn_like(image["pixel_values"])} for image in rows.images
        )
        ids = tuple(f"image-{start + row}" for row in range(len(rows)))
        yield replace(rows, sample_ids=ids, images=noise).to(device)


def compare_ways(options: argparse.Namespace, folder: Path) -> tuple[list[Row], str]:
    """Measure both ways in turn, after checking that they agree."""
    checkpoint = make_checkpoint(options, folder)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    backbone = Backbone.from_pretrained(checkpoint, dtype=dtype)
    backbone.model.to(options.device)
    batches = list(many_batches(checkpoint, options.samples, options.batch_size, options.device))
    ways = {"plain": save_everything, "ours": stream}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in ways}
    for repetition in range(options.repetitions):
        for name, way in ways.items():
            own = folder / f"{name}-{repetition}"
            own.mkdir()
            outcomes[name].append(way(backbone, batches, own))
            synchronise(options.device)
    difference = max(
        float((plain.curves - ours.curves).abs().max())
        for plain, ours in zip(*outcomes.values(), strict=True)
    )
    if difference > 1e-4:
        raise SystemExit(f"The two ways do not agree: curves differ by {difference:.1e}.")
    plain, ours = outcomes.values()
    n = options.samples
    rows = [
        Row(
            "milliseconds per sample",
            [1e3 * each.seconds / n for each in plain],
            [1e3 * each.seconds / n for each in ours],
        ),
        Row(
            "kilobytes on disk",
            [each.size / 1e3 for each in plain],
            [each.size / 1e3 for each in ours],
        ),
    ]
    note = (
        f"{n} samples of {options.image_tokens} visual tokens; "
        f"LLM {options.text_layers} x {options.text_width}. "
        f"{len(CURVES)} curves of all {n**2} pairs of samples; they agree to {difference:.0e}."
    )
    return rows, note


def measure_memory(options: argparse.Namespace, folder: Path) -> str:
    """Run the analysis with default measures over more and more samples, and say what that took."""
    checkpoint = str(build_tiny_checkpoint(folder / "small", size=SMALL))
    backbone = Backbone.from_pretrained(checkpoint)
    backbone.model.to(options.device)
    found = []
    for count in (2 * options.batch_size, *options.memory_samples):  # the first warms up
        analysis = Alignment()
        meter, started = MemoryMeter(options.device), time.perf_counter()
        for batch in many_batches(checkpoint, count, options.batch_size, options.device):
            analysis.update(backbone, batch)
        seconds, peak = time.perf_counter() - started, meter.peak()
        assert analysis.compute().n_samples == count
        found.append(f"{count} samples: {peak:.0f} MiB, {1000 * seconds / count:.1f} ms each")
    shape = f"{SMALL.text_layers} layers of width {SMALL.text_width}"
    return f"Peak memory of all default measures, {shape}: {'; '.join(found[1:])}."


def main() -> None:
    """Read the options, measure memory, compare both ways and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser)
    parser.set_defaults(text_layers=4, image_tokens=144, vocabulary=2048, repetitions=1)
    parser.add_argument("--samples", type=int, default=200, help="samples whose pairs are compared")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--memory-samples", type=int, nargs="*", default=[200, 2000, 20000])
    options = parser.parse_args()
    be_quiet()
    with tempfile.TemporaryDirectory() as folder:
        notes = [measure_memory(options, Path(folder))] if options.memory_samples else []
        rows, note = compare_ways(options, Path(folder))
    print_table(
        BASELINE, rows, device=options.device, threads=torch.get_num_threads(), notes=[note, *notes]
    )


if __name__ == "__main__":
    main()
