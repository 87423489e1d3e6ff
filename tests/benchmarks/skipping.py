"""Half of the visual tokens go around the FFN: the share of the time and of the operations saved.

The baseline computes the FFN of all tokens and leaves the skipped ones' out afterwards, with a
mask: what leaves the model is the same, which is checked first, and its time is that of the model
without skipping. Ours gathers the rows that go through. Timed is the decoder's pass over whole
samples, images encoded: nothing skipped, baseline and ours in turn, each round beginning with
another one. What is saved is the median over rounds, with the 95 % interval of a median. It should
not exceed the share of the operations: where it does, as on a busy machine, the table says so. Run
it: `python tests/benchmarks/skipping.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import median

import torch
from scipy.stats import binom  # type: ignore[import-untyped]
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_mllm.analysis.forward.decoder_costs import DecoderPassCosts
from lightning_mllm.analysis.forward.sample_tokens import SampleTokens
from lightning_mllm.analysis.skipping.choice import choose_in_prompts
from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.analysis.skipping.skipping import skipped, skipping
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from tests.benchmarks.harness import Row, be_quiet, print_table
from tests.benchmarks.knockout import PRESETS, make_backbone, make_batch, timed

Context = Callable[[Backbone, MultimodalBatch, Skip], AbstractContextManager[None]]

BASELINE = "computed, then left out"
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5}


@contextmanager
def left_out(backbone: Backbone, batch: MultimodalBatch, skip: Skip) -> Iterator[None]:
    """Compute every FFN, and drop what it makes of the chosen tokens; padding is on the left."""
    table = choose_in_prompts(SampleTokens.of(batch), skip, 0)
    chosen = (
        table.gather(1, batch.position_ids.clamp(max=table.shape[1] - 1))
        & batch.attention_mask.bool()
    )
    chosen &= batch.position_ids < table.shape[1]

    def drop(_: object, __: object, fed: Tensor) -> Tensor:
        return fed.masked_fill(chosen[..., None], 0)

    layers = decoder_layers(backbone)
    handles = [
        layers[k].get_submodule("mlp").register_forward_hook(drop) for k in skip.layers(len(layers))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def check(backbone: Backbone, batch: MultimodalBatch, skip: Skip) -> tuple[float, float]:
    """Return how far last log-probabilities differ: between the two, and from nothing skipped."""
    clean, theirs, ours = (
        _logprobs(backbone, batch, skip, context) for context in (None, left_out, skipping)
    )
    difference, effect = float((theirs - ours).abs().max()), float((clean - ours).abs().max())
    tolerance = TOLERANCE[backbone.model.dtype]
    if not difference <= tolerance:
        raise SystemExit(f"The two differ by up to {difference:.1e}, more than {tolerance:.0e}.")
    if not effect:
        raise SystemExit("Skipping changes nothing at all.")
    return difference, effect


def _logprobs(
    backbone: Backbone, batch: MultimodalBatch, skip: Skip, context: Context | None
) -> Tensor:
    with nullcontext() if context is None else context(backbone, batch, skip):
        logits: Tensor = backbone.model(
            **batch.model_inputs(), use_cache=False, logits_to_keep=1
        ).logits[:, -1]
    return logits.float().log_softmax(-1)


def compare(
    options: argparse.Namespace, backbone: Backbone, batch: MultimodalBatch
) -> tuple[list[Row], list[str]]:
    """Check that both give the same, then measure them in turn."""
    once = DecoderPassCosts.of(backbone, batch, skipped)
    rows, notes = [], []
    for start in options.starts:
        skip = Skip(share=options.share, start=start)
        difference, effect = check(backbone, batch, skip)
        operations = 1 - once.flops(backbone, skip) / once.flops(backbone)
        clean, baseline, ours = _times(options, backbone, batch, skip, once)
        saved = [1 - mine / own for mine, own in zip(ours, clean, strict=True)]
        rows.append(
            Row(
                f"seconds per pass, skipping from {start:g} of the depth on",
                baseline,
                ours,
                digits=3,
            )
        )
        notes.append(
            f"From {start:g} of the depth on: {what_is_saved(operations, saved)} "
            f"Log-probabilities differ by up to {difference:.1e}; "
            f"skipping changes them by up to {effect:.1e}."
        )
    return rows, notes


def _times(
    options: argparse.Namespace,
    backbone: Backbone,
    batch: MultimodalBatch,
    skip: Skip,
    once: DecoderPassCosts[Skip],
) -> list[list[float]]:
    """Return the seconds of passes: nothing skipped, baseline, ours; a first round warms up."""
    contexts: tuple[Context | None, ...] = (None, left_out, skipping)
    times: list[list[float]] = [[] for _ in contexts]
    for turn in range(1 + options.repetitions):
        for place in range(len(contexts)):
            which = (turn + place) % len(contexts)
            context = contexts[which]
            with nullcontext() if context is None else context(backbone, batch, skip):
                seconds = timed(lambda: once.run(backbone), options.device)
            if turn:
                times[which].append(seconds)
    return times


def what_is_saved(operations: float, saved: Sequence[float]) -> str:
    """Set the share of the time that rounds saved beside that of the operations."""
    low, high = interval_of_median(saved)
    told = (
        f"{100 * operations:.1f} % of the operations are skipped, and "
        f"{100 * median(saved):.1f} % ({100 * low:.1f} to {100 * high:.1f}) of the time of a pass "
        "that skips nothing."
    )
    if median(saved) <= operations:
        return told
    sure = (
        "more than the operations explain"
        if low > operations
        else "within what rounds differ by, but above it"
    )
    return (
        f"{told} This is {sure}: DON'T QUOTE IT. "
        "Run it again on an idle machine, with more repetitions."
    )


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the 95 % interval: two of the values; of fewer than six the outermost."""
    ordered = sorted(values)
    beyond = max(0, int(binom.ppf(0.025, len(ordered), 0.5)) - 1)
    return ordered[beyond], ordered[-1 - beyond]


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
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument(
        "--share", type=float, default=0.5, help="of the visual tokens that skip the FFN"
    )
    parser.add_argument(
        "--starts", type=float, nargs="+", default=[0.0, 0.5], help="fractions of the depth"
    )
    parser.add_argument("--questions", type=int, default=1, help="samples in the batch")
    parser.add_argument("--repetitions", type=int, default=41, help="rounds of measurements")
    options = parser.parse_args()
    be_quiet()
    with tempfile.TemporaryDirectory() as folder:
        backbone, checkpoint = make_backbone(options, Path(folder))
        batch = make_batch(options, checkpoint)
        rows, notes = compare(options, backbone, batch)
    hidden = backbone.model.get_decoder().config.hidden_size
    width = f"{len(decoder_layers(backbone))} layers of width {hidden}"
    tokens = SampleTokens.of(batch)
    shape = (
        f"{100 * options.share:g} % of {int(tokens.perceptual[0].sum())} visual tokens, "
        f"{batch.input_ids.shape[1]} in all, {len(batch)} sample(s); "
        f"{width}, {options.attention} attention."
    )
    print_table(
        BASELINE,
        rows,
        device=options.device,
        threads=torch.get_num_threads(),
        notes=[shape, *notes],
    )


if __name__ == "__main__":
    main()
