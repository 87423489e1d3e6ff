"""FT-Proj with a quantised LLM: peak memory against the plain model, in bfloat16 as on a GPU.

    MALLOC_MMAP_THRESHOLD_=1000000 python tests/benchmarks/quantized_memory.py
    MALLOC_MMAP_THRESHOLD_=1000000 python tests/benchmarks/quantized_memory.py --text-layers 32

The memory is what a process holds for itself (RssAnon) at the peak of loading, and at that of three
steps, less what it held before it loaded the model. Each measurement is a process of its own, and
plain and quantised take turns. Without the variable glibc keeps memory that nothing uses any more.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import get_args

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_mllm.data import Digits
from lightning_mllm.models.adapted import AdaptedModel
from lightning_mllm.models.freeze import ProjectorOnly
from lightning_mllm.models.quantization import Quantize
from lightning_mllm.models.source import Source
from lightning_mllm.models.tiny import TinySize, build_tiny_checkpoint
from tests.benchmarks.harness import Row, be_quiet, print_table

STEPS = 3
KINDS: tuple[Quantize, ...] = get_args(Quantize)


class AnonymousMemory:
    """Watches, while its block runs, how much memory the process holds for itself, in MiB."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> AnonymousMemory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.peak = max(self.peak, read_anonymous_memory())
            time.sleep(0.002)


def read_anonymous_memory() -> float:
    """Return RssAnon of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise SystemExit("RssAnon is not known here: this benchmark needs Linux.")


def measure_peaks(checkpoint: str, quantize: Quantize | None) -> tuple[float, float]:
    """Return the peaks of loading and of some steps, in MiB above what was held before."""
    data = Digits(checkpoint=checkpoint, batch_size=2)
    data.setup("fit")
    batch = data.collator([(0, sample) for sample in data.samples["train"][:2]])
    if quantize is not None:
        import bitsandbytes  # noqa: F401  # the library itself is no weight
    before = read_anonymous_memory()
    with AnonymousMemory() as loading:
        adapted = AdaptedModel.load(
            Source(checkpoint), ProjectorOnly(), dtype=torch.bfloat16, quantize=quantize
        )
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with AnonymousMemory() as training:
        adapted.set_train_modes()
        trained = [each for _, each in adapted.backbone.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        for _ in range(STEPS):
            optimizer.zero_grad()
            adapted.loss(batch).backward()
            optimizer.step()
    return loading.peak - before, training.peak - before


def run_measurement(checkpoint: str, quantize: str) -> tuple[float, float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--checkpoint", checkpoint, "--one", quantize]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    loading, training = map(float, done.stdout.split()[-2:])
    return loading, training


def _row(kind: Quantize, when: int, found: dict[str, list[tuple[float, float]]]) -> Row:
    what = ("loading", "training")[when]
    plain, own = ([peaks[when] for peaks in found[name]] for name in ("plain", kind))
    return Row(f"{kind}, {what}: peak MiB", plain, own)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3, help="rounds of measurements")
    parser.add_argument("--text-width", type=int, default=768)
    parser.add_argument("--text-layers", type=int, default=16)
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    be_quiet()
    if options.one is not None:
        quantize = None if options.one == "plain" else options.one
        print(*measure_peaks(options.checkpoint, quantize))
        return
    size = TinySize(text_width=options.text_width, text_layers=options.text_layers)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(build_tiny_checkpoint(Path(folder, "wide"), size=size))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("plain", *KINDS)}
        for _ in range(options.repetitions):
            for name, peaks in found.items():
                peaks.append(run_measurement(checkpoint, name))
        weights = sum(each.stat().st_size for each in Path(checkpoint).glob("*.safetensors")) / 4
    rows = [_row(kind, 0, found) for kind in KINDS] + [_row(kind, 1, found) for kind in KINDS]
    print_table(
        "plain",
        rows,
        device="cpu",
        threads=torch.get_num_threads(),
        notes=[f"{weights / 1e6:.0f} million weights, {STEPS} steps of 2 pictures in bfloat16."],
    )


if __name__ == "__main__":
    main()
