"""What the collator costs per picture, against the family's own processor on the same batch.

Pictures of noise, as large as photographs of a data set, are put into batches with one question
each: by the collator, and by the chat template and one call of the processor of transformers.
Sizes are those of published checkpoints: CLIP's 336 pixels, and Qwen's patches of 14 pixels at the
picture's own resolution. That both make the same token ids and pixels is checked first. Run it:
`python tests/benchmarks/collator.py`.
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
from PIL import Image
from transformers import CLIPImageProcessorPil, Qwen2VLImageProcessorPil

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Collator, ConversationPrompt, load_processor
from lightning_mllm.data.images.geometry import GeometryName
from lightning_mllm.data.loading.batch import PaddingSide
from lightning_mllm.models.tiny import TinyFamily, build_tiny_checkpoint
from lightning_mllm.types import Sample, Turn
from tests.benchmarks.harness import Row, be_quiet, print_table

BASELINE = "own processor"
QUESTION, ANSWER = "What is shown in this picture?", "a red circle"
SIZES = ((500, 375), (375, 500), (640, 480), (480, 640))  # (width, height) of photographs
SIDE, CONTEXT = 336, 8192


@dataclass(frozen=True)
class Task:
    """What both sides make a batch of.

    Attributes:
        collator: Our side.
        samples: One picture and one question each.
    """

    collator: Collator
    samples: list[Sample]

    def collate(self) -> MultimodalBatch:
        """Make a batch as this package does."""
        return self.collator([(0, sample) for sample in self.samples])

    def call_processor(self) -> dict[str, Any]:
        """Make the same batch as a user of transformers does."""
        processor = self.collator.processor
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        messages: Any = [{"role": "user", "content": content}]
        texts = []
        for _ in self.samples:
            prompt = processor.tokenizer.apply_chat_template(
                messages,
                chat_template=processor.chat_template,
                add_generation_prompt=True,
                tokenize=False,
            )
            texts.append(prompt)
        own: Any = processor.hf
        pictures = [list(sample.images) for sample in self.samples]
        return dict(own(text=texts, images=pictures, padding=True, return_tensors="pt"))


def make_task(family: TinyFamily, pictures: int, folder: Path) -> Task:
    """Open a tiny checkpoint, with pictures and patches as large as published ones."""
    geometry: GeometryName = "crop" if family == "llava" else "native"
    processor = load_processor(str(build_tiny_checkpoint(folder / family, family)))
    own: Any = processor.hf
    if family == "llava":
        crop = {"height": SIDE, "width": SIDE}
        own.image_processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=crop)
        own.image_processor.do_pad, own.patch_size = False, 14
    else:
        own.image_processor = Qwen2VLImageProcessorPil()
    processor.tokenizer.model_max_length = CONTEXT
    side: PaddingSide = "left" if processor.tokenizer.padding_side == "left" else "right"
    collator = Collator(
        processor,
        ConversationPrompt(),
        geometry=geometry,
        max_length=CONTEXT,
        padding_side=side,
    )
    turns = [Turn("user", QUESTION, images=1), Turn("assistant", ANSWER)]
    samples = []
    for k in range(pictures):
        image = draw_noise(k, SIZES[k % len(SIZES)])
        samples.append(Sample(id=str(k), images=[image], conversation=turns))
    return Task(collator, samples)


def draw_noise(number: int, size: tuple[int, int]) -> Image.Image:
    """Draw a picture of a size, (width, height)."""
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def check_same(task: Task) -> None:
    """Stop if the two sides do not make the same prompts and pixels."""
    ours, theirs = task.collate().prompts().model_inputs(), task.call_processor()
    side = task.collator.processor.tokenizer.padding_side
    for name, value in theirs.items():
        if name not in ours or (side == "right" and name in ("input_ids", "attention_mask")):
            continue  # our prompts are padded on the left
        if not torch.equal(ours[name], value):
            raise SystemExit(f"The two sides make another {name}, so they can't be compared.")


def measure(make: Callable[[], object], pictures: int) -> float:
    """Return the milliseconds of CPU time per picture."""
    start = time.process_time()
    make()
    return (time.process_time() - start) / pictures * 1000


def compare(family: TinyFamily, options: argparse.Namespace, folder: Path) -> Row:
    """Measure the two sides of a family in turn, after checking that they agree."""
    task = make_task(family, options.pictures, folder)
    check_same(task)
    own, ours = [], []
    for _ in range(options.repetitions):
        own.append(measure(task.call_processor, options.pictures))
        ours.append(measure(task.collate, options.pictures))
    return Row(f"{family}: CPU ms per picture", own, ours, digits=2)


def main() -> None:
    """Draw, measure and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=16, help="pictures of a batch")
    parser.add_argument("--repetitions", type=int, default=7, help="pairs of measurements")
    options = parser.parse_args()
    be_quiet()
    torch.set_num_threads(1)
    families: tuple[TinyFamily, ...] = ("llava", "qwen2_5_vl")
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare(family, options, Path(folder)) for family in families]
    notes = []
    for family, row in zip(families, rows, strict=True):
        theirs, ours = 1000 / min(row.baseline), 1000 / min(row.ours)
        notes.append(f"{family}: {ours:.0f} pictures per second, own processor {theirs:.0f}.")
    print_table(BASELINE, rows, device="cpu", threads=1, notes=notes)


if __name__ == "__main__":
    main()
