"""A whole sweep of attention knockouts: the suffix engine against a full forward per case.

Six blocks, a window around every layer: a case is a block in a window. The baseline encodes the
image once, hooks the block in and runs the whole prompt, with logits at the last position only; its
time per forward does not depend on what is blocked, so that a sample of the forwards is timed and
scaled up, or with `--full` all of them. Run it: `python tests/benchmarks/knockout.py`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_mllm.analysis import Block, Case, SuffixEngine, Windows, knockout
from lightning_mllm.analysis.forward.prompts import Prompts, prompt_log_probabilities
from lightning_mllm.batches import MultimodalBatch, TokenSpans
from lightning_mllm.data import Collator, ConversationPrompt, load_processor
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.tiny import TinySize, build_tiny_checkpoint
from lightning_mllm.types import Sample, Segment, Turn
from tests.benchmarks.harness import (
    PATCH,
    WORD_VOCABULARY,
    MemoryMeter,
    Row,
    be_quiet,
    print_table,
    synchronise,
)

BASELINE = "one forward per window"
BLOCKS = (
    "question->last",
    "image->last",
    "last->last",
    "image->question",
    "image object->question",
    "image other->question",
)
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
INSTRUCTION = "Answer the question using a single word or phrase."
QUESTION = "Which colour is the shape on the left of the picture, red or blue?"
CORPUS = "\n".join([SYSTEM, "USER: ASSISTANT:", QUESTION, INSTRUCTION])
PRESETS = {  # width, layers, heads, key heads, width of the MLP
    "small": (256, 24, 4, 4, 688),
    "medium": (512, 24, 8, 8, 1376),
    "7b": (4096, 32, 32, 32, 11008),
    "8b-gqa": (4096, 32, 32, 8, 14336),
}
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5}


def make_backbone(options: argparse.Namespace, folder: Path) -> tuple[Backbone, str]:
    """Return a LLaVA with random weights and 576 visual tokens, and the folder of its processor."""
    size = TinySize(
        image_size=24 * PATCH, patch_size=PATCH, vocabulary=WORD_VOCABULARY, context=4096
    )
    checkpoint = str(build_tiny_checkpoint(folder / "tiny", size=size, corpus=CORPUS))
    config = AutoConfig.from_pretrained(checkpoint)
    width, layers, heads, key_heads, mlp = PRESETS[options.preset]
    text = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": mlp,
        "vocab_size": 32064,
    }
    text |= {
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": width // heads,
    }
    config.text_config.update(text)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device(options.device):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation=options.attention
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=1.0 if "embed" in name else parameter[0].numel() ** -0.5)
    return Backbone(model.eval()), checkpoint


def make_batch(options: argparse.Namespace, checkpoint: str) -> MultimodalBatch:
    """Return a question about pictures of noise; a tenth of the patches are called the object's."""
    generator = torch.Generator().manual_seed(0)
    samples = [
        Sample(
            id=str(number),
            images=[
                Image.fromarray(
                    torch.randint(256, (336, 336, 3), generator=generator).byte().numpy()
                )
            ],
            conversation=[Turn("user", QUESTION, INSTRUCTION, images=1), Turn("assistant", "red")],
        )
        for number in range(options.questions)
    ]
    collator = Collator(
        load_processor(checkpoint), ConversationPrompt(system=SYSTEM), padding_side="left"
    )
    batch = collator([(0, sample) for sample in samples])
    image = batch.spans[Segment.IMAGE]
    part = image & (image.cumsum(1) % 10 == 0)
    regions = {Segment.IMAGE_OBJECT: part, Segment.IMAGE_OTHER: image & ~part}
    return replace(batch, spans=TokenSpans({**batch.spans.masks, **regions})).to(options.device)


@torch.no_grad()
def one_forward_per_window(
    backbone: Backbone, batch: MultimodalBatch, cases: Sequence[Case]
) -> Tensor:
    """Return log-probability of the clean run's argmax, clean and per case: (batch, 1 + cases)."""
    prompts = Prompts.of(backbone, batch)
    clean = prompt_log_probabilities(prompts.forward(backbone)[0])
    found = [clean]
    for case in cases:
        with knockout(backbone, prompts.batch, [case.block], case.window):
            found.append(prompt_log_probabilities(prompts.forward(backbone)[0]))
    return torch.stack(
        [each.gather(1, clean.argmax(1, keepdim=True))[:, 0] for each in found], dim=1
    )


@torch.no_grad()
def clean_forward(backbone: Backbone, batch: MultimodalBatch) -> None:
    """Run the prompts once, images encoded, nothing blocked."""
    Prompts.of(backbone, batch).forward(backbone)


def timed(work: Callable[[], object], device: str) -> float:
    """Return the seconds that it takes."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def peak(work: Callable[[], object], backbone: Backbone, device: str) -> float:
    """Return the peak memory in MiB, the model's weights not counted."""
    weights = sum(
        parameter.numel() * parameter.element_size() for parameter in backbone.model.parameters()
    )
    meter = MemoryMeter(device, weights)
    work()
    return meter.peak()


def compare(
    options: argparse.Namespace, backbone: Backbone, batch: MultimodalBatch
) -> tuple[list[Row], list[str]]:
    """Check that both give the same on a sample of the cases, then measure them in turn."""
    depth = len(backbone.decoder.layers)  # type: ignore[arg-type]
    windows = Windows(options.width).of(depth)
    cases = [Case(Block.parse(block), window) for block in BLOCKS for window in windows]
    sample = cases if options.full else random.Random(0).sample(cases, options.sample)
    engine = SuffixEngine(
        memory=None if options.memory is None else int(options.memory * 2**20), strict=True
    )
    difference = _largest_difference(engine, backbone, batch, sample)
    mib = (
        [
            peak(
                lambda: one_forward_per_window(backbone, batch, sample[:1]),
                backbone,
                options.device,
            )
        ],
        [peak(lambda: engine.run(backbone, batch, cases), backbone, options.device)],
    )
    scale = len(cases) / len(sample)
    baseline, ours, clean = [], [], []
    for _ in range(options.repetitions):
        clean.append(timed(lambda: clean_forward(backbone, batch), options.device))
        with_clean = timed(lambda: one_forward_per_window(backbone, batch, sample), options.device)
        baseline.append(clean[-1] + (with_clean - clean[-1]) * scale)
        ours.append(timed(lambda: engine.run(backbone, batch, cases), options.device))
    cost = sorted(one / two for one, two in zip(ours, clean, strict=True))
    prompts = batch.prompts()
    tail = prompts.input_ids.shape[1] - int(prompts.spans[Segment.QUESTION][0].int().argmax())
    width = backbone.decoder.config.hidden_size  # type: ignore[union-attr]
    notes = [
        f"{len(BLOCKS)} blocks x {len(windows)} windows of {options.width}, {depth} layers of "
        f"width {width}, {options.attention} attention; {len(batch)} prompt(s) of "
        f"{prompts.input_ids.shape[1]} positions, {tail} of them from the question on.",
        f"The baseline's time is measured on {len(sample)} of its {len(cases)} forwards"
        + ("." if options.full else " and scaled up."),
        f"Ours costs {cost[0]:.2f} to {cost[-1]:.2f} clean forwards, its own clean forward "
        f"among them; largest difference of a log-probability {difference:.1e}.",
    ]
    rows = [
        Row("seconds per sweep", baseline, ours, digits=2),
        Row("peak MiB above the model", *mib),
    ]
    return rows, notes


def _largest_difference(
    engine: SuffixEngine, backbone: Backbone, batch: MultimodalBatch, sample: Sequence[Case]
) -> float:
    readings = engine.run(backbone, batch, sample)
    ours = torch.cat([readings.clean_logprobs[:, 0, :1], readings.logprobs[..., 0]], dim=1)
    difference = float((ours - one_forward_per_window(backbone, batch, sample)).abs().max())
    tolerance = TOLERANCE[backbone.model.dtype]
    if not difference <= tolerance:
        raise SystemExit(f"The two differ by up to {difference:.1e}, more than {tolerance:.0e}.")
    return difference


def main() -> None:
    """Read the options, compare and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="on cuda, weights are in bfloat16"
    )
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), default="small", help="shape of the decoder"
    )
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--width", type=int, default=9, help="layers in a window")
    parser.add_argument("--questions", type=int, default=1, help="prompts in the batch")
    parser.add_argument("--repetitions", type=int, default=3, help="pairs of measurements")
    parser.add_argument("--memory", type=float, help="budget of the suffix engine in MiB")
    parser.add_argument(
        "--sample", type=int, default=6, help="forwards of the baseline that are timed"
    )
    parser.add_argument("--full", action="store_true", help="time all forwards of the baseline")
    options = parser.parse_args()
    be_quiet()
    with tempfile.TemporaryDirectory() as folder:
        backbone, checkpoint = make_backbone(options, Path(folder))
        rows, notes = compare(options, backbone, make_batch(options, checkpoint))
    print_table(BASELINE, rows, device=options.device, threads=torch.get_num_threads(), notes=notes)


if __name__ == "__main__":
    main()
