"""Memory of a process that trains under `fsdp2`, as a share of what it needs under `ddp`.

    python tests/benchmarks/sharding_memory.py

Builds a model of 152 million parameters and trains it for a few steps in two processes on the CPU,
under either strategy in turn. Counted is anonymous memory (RssAnon) at its peak, above that of a
process that has imported everything and holds no model: files that are mapped do not count, also
not the checkpoint's. The table has the larger of the two processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from lightning_mllm.data import Digits
from lightning_mllm.models.freeze import ProjectorAndLLM, ProjectorOnly
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.tiny import TinySize, build_tiny_checkpoint
from lightning_mllm.trainer import Trainer

HERE = Path(__file__).parents[2]
POLICIES = {"FT-E2E": ProjectorAndLLM(), "FT-Proj": ProjectorOnly()}
PER_PROCESS = 2  # samples
TIMEOUT = 1800  # seconds for one training
MEBI = 1024**2


class MemoryMeter(threading.Thread):
    """Looks at the process's anonymous memory all the time.

    Attributes:
        start: Bytes at the beginning.
        peak: Most bytes that were seen.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_bytes = self.peak = read_anonymous_bytes()
        self.is_over = threading.Event()

    def run(self) -> None:
        """Look every few milliseconds."""
        while not self.is_over.wait(0.002):
            self.peak = max(self.peak, read_anonymous_bytes())

    def finish(self) -> float:
        """Return how much more there was than at the beginning, in MiB."""
        self.is_over.set()
        self.join()
        return (self.peak - self.start_bytes) / MEBI


def read_anonymous_bytes() -> int:
    """Return the anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("This system does not tell anonymous memory; run the benchmark on Linux.")


def train_here(checkpoint: str, strategy: str, policy: str, steps: int, output: Path) -> None:
    """Train in this process, one of several; write its memory."""
    processes = int(os.environ["WORLD_SIZE"])
    meter = MemoryMeter()
    meter.start()
    module = MLLMModule(
        checkpoint, policy=POLICIES[policy], scorers=(), warmup_ratio=0.0, decay="constant"
    )
    trainer = Trainer(
        logger=False,
        accelerator="cpu",
        devices=processes,
        strategy=strategy,
        max_steps=steps,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    size = PER_PROCESS * processes
    data: Any = Digits(checkpoint=checkpoint, batch_size=size, eval_batch_size=size)
    trainer.fit(module, datamodule=data)
    (output / f"{trainer.global_rank}.json").write_text(json.dumps(meter.finish()))


def measure_training(
    checkpoint: str, strategy: str, policy: str, options: argparse.Namespace
) -> float:
    """Return the memory of the larger process, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc_per_node", str(options.processes), __file__, "--worker"),
                *(checkpoint, strategy, policy, str(options.steps), folder),
            ],
            env={**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"},
            cwd=folder,
            timeout=TIMEOUT,
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{strategy}, {policy} failed:\n{done.stderr}")
        return max(float(json.loads(each.read_text())) for each in Path(folder).glob("*.json"))


def main() -> None:
    """Measure and show."""
    if sys.argv[1:2] == ["--worker"]:
        checkpoint, strategy, policy, steps, output = sys.argv[2:]
        train_here(checkpoint, strategy, policy, int(steps), Path(output))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("repetitions", 3), ("processes", 2), ("steps", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("text-width", 768), ("text-layers", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        size = TinySize(text_width=options.text_width, text_layers=options.text_layers)
        checkpoint = str(build_tiny_checkpoint(Path(folder, "wide"), "llava", size=size))
        for _ in range(options.repetitions):
            for policy in POLICIES:
                for strategy in ("ddp", "fsdp2"):
                    memory = measure_training(checkpoint, strategy, policy, options)
                    found.setdefault((policy, strategy), []).append(memory)
    table = Table("policy", "ddp, MiB", "fsdp2, MiB", "fsdp2 / ddp", box=MARKDOWN)
    for policy in POLICIES:
        whole, shards = found[policy, "ddp"], found[policy, "fsdp2"]
        ratios = [ours / theirs for theirs, ours in zip(whole, shards, strict=True)]
        table.add_row(
            policy,
            f"{statistics.median(whole):,.0f}",
            f"{statistics.median(shards):,.0f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        )
    console = Console(width=120, highlight=False)
    console.print(
        f"{options.processes} processes on the CPU, {PER_PROCESS} samples each; peak above an "
        f"empty process, medians of {options.repetitions} repetitions (smallest to largest)."
    )
    console.print(table)


if __name__ == "__main__":
    main()
