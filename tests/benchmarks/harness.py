"""What the benchmarks share: a checkpoint with random weights, the memory meter and the table."""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import math
import platform
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import get_args

import torch
import transformers
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForImageTextToText

from lightning_mllm.models.tiny import TinyFamily, TinySize, build_tiny_checkpoint

PATCH = 14
WORD_VOCABULARY = (
    2048  # enough for the tiny tokenizer to learn every word of its corpus as one token
)


@dataclass(frozen=True)
class Row:
    """One compared quantity; its two lists run over the repetitions, pair by pair."""

    name: str
    baseline: Sequence[float]
    ours: Sequence[float]
    digits: int = 0

    def cells(self) -> tuple[str, str, str, str]:
        """Return name, both medians and the ratio baseline / ours."""
        ratios = [
            theirs / ours for theirs, ours in zip(self.baseline, self.ours, strict=True) if ours > 0
        ]
        ratio = f"{median(ratios):.2f}x" if ratios else "-"
        if len(ratios) > 1:
            ratio += f" ({min(ratios):.2f} to {max(ratios):.2f})"
        return (
            self.name,
            f"{median(self.baseline):.{self.digits}f}",
            f"{median(self.ours):.{self.digits}f}",
            ratio,
        )


def print_table(
    baseline: str, rows: Sequence[Row], *, device: str, threads: int, notes: Sequence[str]
) -> None:
    """Print where it ran, what was compared and the table, as Markdown."""
    packages = ("torch", "transformers", "lightning", "lightning-mllm")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    processor = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    repetitions = max(len(row.ours) for row in rows)
    table = Table("measured", box=MARKDOWN)
    for column in (baseline, "lightning_mllm", "ratio, pair by pair: median (min to max)"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row.cells())
    console = Console(width=150, highlight=False)
    console.print(
        f"{device} ({processor}), {threads} torch threads; "
        f"Python {platform.python_version()}, {versions}"
    )
    console.print(
        f"Medians of {repetitions} alternating repetitions; ratio = {baseline} / lightning_mllm."
    )
    for note in notes:
        console.print(note)
    console.print(table)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add device, repetitions and the shape of the model."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repetitions", type=int, default=3, help="pairs of measurements")
    parser.add_argument(
        "--checkpoint", help="hub id or folder instead of a model with random weights"
    )
    shape = parser.add_argument_group("shape of the model with random weights")
    shape.add_argument("--family", choices=get_args(TinyFamily), default="llava")
    for name, default in (
        ("vision-width", 128),
        ("vision-layers", 4),
        ("text-width", 256),
        ("text-layers", 8),
        ("heads", 4),
        ("vocabulary", 32064),
        ("image-tokens", 64),
    ):
        shape.add_argument(f"--{name}", type=int, default=default)


def make_checkpoint(options: argparse.Namespace, folder: Path) -> str:
    """Build a model of the shape asked for, unless a checkpoint is given."""
    if options.checkpoint is not None:
        return str(options.checkpoint)
    side = math.isqrt(options.image_tokens)
    if side**2 != options.image_tokens:
        raise SystemExit(f"--image-tokens {options.image_tokens} is no square, and images are.")
    if options.vocabulary < WORD_VOCABULARY:
        raise SystemExit(
            f"--vocabulary {options.vocabulary} is too small: "
            f"the tokenizer needs {WORD_VOCABULARY}."
        )
    size = TinySize(
        image_size=PATCH * side,
        patch_size=PATCH,
        vision_width=options.vision_width,
        vision_layers=options.vision_layers,
        text_width=options.text_width,
        text_layers=options.text_layers,
        heads=options.heads,
        vocabulary=WORD_VOCABULARY,
        context=4096,
    )
    small = build_tiny_checkpoint(folder / "small-vocabulary", options.family, size=size)
    model = AutoModelForImageTextToText.from_pretrained(small)
    torch.manual_seed(0)
    model.resize_token_embeddings(options.vocabulary, mean_resizing=False)
    checkpoint = shutil.copytree(small, folder / "checkpoint")  # with the processor's files
    model.save_pretrained(checkpoint)
    return str(checkpoint)


def be_quiet() -> None:
    """Keep everything but our table off the screen."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def synchronise(device: str) -> None:
    """Wait for the accelerator, so that the clock means something."""
    if device == "cuda":
        torch.cuda.synchronize()


class MemoryMeter:
    """Peak memory since its construction, in MiB, above what was held then.

    That is what the process held or, on a GPU, the weights. On the CPU the peak is the kernel's
    high-water mark of the resident set, reset here; NaN where there is no such mark.
    """

    def __init__(self, device: str, weights: int = 0) -> None:
        self._device = device
        gc.collect()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._base = weights / 2**20
        elif sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(
                0
            )  # what earlier work has freed would hide as much of the peak
            Path("/proc/self/clear_refs").write_text("5")
            self._base = _resident("VmRSS")

    def peak(self) -> float:
        """Return the peak so far."""
        if self._device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20 - self._base
        return _resident("VmHWM") - self._base if sys.platform == "linux" else math.nan


def _resident(field: str) -> float:
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )
    return int(line.split()[1]) / 1024
