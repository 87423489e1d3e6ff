"""Kills a fit again and again: does it end where the fit that never stopped ends, to the bit?

    python tests/benchmarks/kills.py --folder /scratch/kills --processes 2 --kills 10
    python tests/benchmarks/kills.py --folder /scratch/kills --workers 2 --kills 20

Each life of the fit is killed (`kill -9`, one of its processes) at a random moment after it has
written a checkpoint, and goes on with `--resume`. All other processes must end within a minute, and
say which was killed; no loader worker may be left, and at the end weights and optimiser states must
be those of the fit that never stopped. A kill in the middle of a write leaves a `.part`, which
nothing reads; one per kill at most. A script that is stopped goes on where
it was when it is called again with the same options. Random moments come from the seed; the machine
decides which step they meet, which the table says. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped,unused-ignore]
import torch
from PIL import Image

from lightning_mllm.models.tiny import build_tiny_checkpoint

EVERY = 5  # steps between checkpoints
PICTURES = 600
START = 1800.0  # seconds that a start may take on a busy machine


@dataclass
class Kill:
    """One kill and what followed.

    Attributes:
        run: Folder of the run that was killed.
        rank: Number of the process that was killed.
        step: Last step that was written.
        seconds: Until all other processes had ended; NaN for a hang.
        said: Whether one of them said which process was killed.
    """

    run: str
    rank: int
    step: int
    seconds: float
    said: bool


@dataclass
class Chain:
    """The kills so far, in a file of their own."""

    path: Path
    kills: list[Kill] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> Chain:
        """Read the kills of an earlier call, if there was one."""
        found = json.loads(path.read_text()) if path.exists() else []
        return cls(path, [Kill(**each) for each in found])

    def add(self, kill: Kill) -> None:
        """Write down one more."""
        self.kills.append(kill)
        self.path.write_text(json.dumps([asdict(each) for each in self.kills], indent=1))


def prepare(folder: Path) -> None:
    """Make a model and pictures, unless they are there."""
    if not (folder / "model").exists():
        build_tiny_checkpoint(folder / "model", "llava", "vicuna")
    random_pixels = np.random.default_rng(0)
    for k in range(PICTURES):
        split, name = ("val" if k % 10 == 0 else "train"), ("cat", "dog", "bird")[k % 3]
        path = folder / "photos" / split / name / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            pixels = random_pixels.integers(0, 256, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)


def command(options: argparse.Namespace, *more: str) -> list[str]:
    """Return the command of a fit."""
    return [
        *(sys.executable, "-m", "lightning_mllm", "fit", "--trainer.run.root", "runs", *more),
    ]


def fresh(options: argparse.Namespace) -> list[str]:
    """Return the options of a fit that does not go on with another one."""
    processes = ("--trainer.devices", str(options.processes))
    return [
        *("--model.checkpoint", "model", "--data", "ImageFolder", "--data.init_args.root=photos"),
        *("--data.init_args.batch_size", "4", "--data.init_args.num_workers", str(options.workers)),
        *("--model.policy", "Lora", "--model.policy.init_args.dropout", "0.1"),
        *("--model.policy.init_args.rank", "4", "--trainer.max_steps", str(options.steps)),
        *("--checkpointing.every_n_train_steps", str(EVERY), "--trainer.limit_val_batches", "2"),
        *("--trainer.accelerator", "cpu", *processes),
        *(("--trainer.strategy", options.strategy) if options.processes > 1 else ()),
    ]


def start(arguments: list[str], folder: Path, log: Path) -> psutil.Popen:
    """Start a fit, whose output goes to a file."""
    environment = {**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        return psutil.Popen(arguments, cwd=folder, env=environment, stdout=file, stderr=file)


def written_step(run: Path) -> int:
    """Return the step of the last checkpoint of a run; 0 if there is none."""
    try:
        return int(json.loads((run / "status.json").read_text())["step"])
    except (OSError, ValueError):
        return 0


def ranks(main: psutil.Process) -> list[psutil.Process]:
    """Return the processes of a fit, by number: the first one and those that it has started."""
    found = {0: main}
    for child in main.children():
        number = child.environ().get("LOCAL_RANK")
        if number is not None:  # a loader worker of the first one has none
            found[int(number)] = child
    return [found[rank] for rank in sorted(found)]


def newest(folder: Path) -> Path:
    """Return the run that began last."""
    return max((folder / "runs").glob("life*"), key=lambda each: each.stat().st_mtime_ns)


def wait_for_checkpoint(main: psutil.Popen, folder: Path, before: set[Path]) -> tuple[Path, float]:
    """Wait for the first two checkpoints of a life; return its run and the time between them."""
    due, times, last = time.monotonic() + START, [], 0
    while time.monotonic() < due and main.poll() is None:
        runs = set((folder / "runs").glob("life*")) - before
        if runs and (step := written_step(run := runs.copy().pop())) > last:
            if (run / "checkpoints" / "last.ckpt").exists():
                times.append(time.monotonic())
            last = step
        if len(times) == 2:
            return run, times[1] - times[0]
        time.sleep(0.01)
    raise SystemExit("The fit ended, or wrote no two checkpoints: raise --steps, or see the logs.")


def live_once(options: argparse.Namespace, folder: Path, chain: Chain) -> None:
    """Start or resume the fit, kill one of its processes, and see how the others end."""
    number = len(chain.kills)
    draw = random.Random(f"{options.seed}-{number}")
    before = set((folder / "runs").glob("life*"))
    how = ["--resume", f"runs/{chain.kills[-1].run}"] if chain.kills else fresh(options)
    log = folder / f"life-{number}.log"
    main = start(command(options, *how, "--trainer.run.name", "life"), folder, log)
    run, pause = wait_for_checkpoint(main, folder, before)
    every = [main, *main.children(recursive=True)]
    processes = ranks(main)
    time.sleep(draw.random() * 1.5 * pause)
    rank = draw.randrange(len(processes))
    every += [each for each in main.children(recursive=True) if each not in every]
    processes[rank].kill()
    killed_at = time.monotonic()
    _, alive = psutil.wait_procs(every, timeout=options.patience)
    seconds = float("nan") if alive else time.monotonic() - killed_at
    for each in alive:
        each.kill()
    said = options.processes == 1 or f"Process {rank} of {options.processes}" in log.read_text()
    chain.add(Kill(run.name, rank, written_step(run), seconds, said))
    print(f"kill {number}: {chain.kills[-1]}, seed {options.seed}", flush=True)


def differences(one: Any, two: Any, name: str = "") -> Iterator[str]:
    """Yield where two nested states differ."""
    if isinstance(one, torch.Tensor):
        if not torch.equal(one, two):
            yield name
    elif isinstance(one, dict):
        for key in {*one, *two}:
            yield from differences(one.get(key), two.get(key), f"{name}/{key}")
    elif isinstance(one, list | tuple):
        for k, (first, second) in enumerate(zip(one, two, strict=True)):
            yield from differences(first, second, f"{name}/{k}")
    elif one != two:
        yield name


def finish(options: argparse.Namespace, folder: Path, name: str, *how: str) -> Path:
    """Run a fit to its end; return its last checkpoint."""
    runs = folder / "runs"
    before = set(runs.glob(f"{name}*"))
    whole = [run for run in before if (run / "status.json").exists()]
    for run in whole:
        if json.loads((run / "status.json").read_text())["status"] == "finished":
            return run / "checkpoints" / "last.ckpt"
    arguments = command(options, *how, "--trainer.run.name", name)
    if start(arguments, folder, folder / f"{name}.log").wait():
        raise SystemExit(f"The fit failed; see {folder / name}.log.")
    (run,) = set(runs.glob(f"{name}*")) - before
    return run / "checkpoints" / "last.ckpt"


def main() -> int:
    """Kill, resume and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="Where all files go.")
    parser.add_argument("--kills", type=int, default=10, help="How often the fit is killed.")
    parser.add_argument("--processes", type=int, default=1, help="Processes of the fit.")
    parser.add_argument("--strategy", default="ddp", help="Strategy of several processes.")
    parser.add_argument("--workers", type=int, default=0, help="Loader workers per process.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of moments and processes.")
    parser.add_argument("--steps", type=int, help="Steps of the fit; by default 25 per kill.")
    parser.add_argument("--patience", type=float, default=60, help="Seconds to a hang.")
    options = parser.parse_args()
    options.steps = options.steps or 25 * options.kills
    folder: Path = options.folder.resolve()
    prepare(folder)
    whole = finish(options, folder, "whole", *fresh(options))
    chain = Chain.open(folder / "kills.json")
    while len(chain.kills) < options.kills:
        live_once(options, folder, chain)
    last = finish(options, folder, "end", "--resume", f"runs/{chain.kills[-1].run}")
    states = [torch.load(each, weights_only=True) for each in (whole, last)]
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    expected, found = ({key: each[key] for key in kept} for each in states)
    differing = list(differences(expected, found))
    parts = [path for path in folder.rglob("*.part*") if path.is_file()]
    hung = [each for each in chain.kills if not each.seconds < options.patience]
    silent = [each for each in chain.kills if not each.said]
    slowest = max(each.seconds for each in chain.kills)
    print(
        f"{len(chain.kills)} kills at steps {[each.step for each in chain.kills]} of "
        f"{options.steps}, processes {[each.rank for each in chain.kills]}: {len(hung)} hung "
        f"(the slowest end took {slowest:.1f} s), {len(silent)} ended without a word about it, "
        f"{len(parts)} hit a write (.part), {len(differing)} differences in weights, optimiser "
        f"and schedule {differing[:5]}"
    )
    return int(bool(hung or silent or differing or len(parts) > len(chain.kills)))


if __name__ == "__main__":
    sys.exit(main())
