"""What `lightning data check` costs on a folder of many small pictures, in seconds of CPU time.

Draws the folder if it is not there, and runs the command of this tree and, by turns, that of
another one:

    python tests/benchmarks/data_check.py --folder /tmp/jpegs --against ../older
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, SIDE = 10, 32
HERE = Path(__file__).parents[2]


def draw_folder(root: Path, count: int) -> None:
    """Write `count` JPEGs of noise, each of one class and no two alike."""
    draw = np.random.default_rng(0)
    for k in range(count):
        folder = root / f"class {k % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.jpg")


def measure_check(tree: Path, root: Path) -> float:
    """Return the user and system seconds of one run of the command from a source tree."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "lightning_mllm", "data", "check", "--data", "ImageFolder"]
    subprocess.run(
        [*command, "--data.init_args.root", str(root)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Draw, measure and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument("--against", type=Path, help="Root of another source tree.")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    if not options.folder.is_dir():
        draw_folder(options.folder, options.pictures)
    ratios = []
    for _ in range(options.repetitions):
        other = (
            measure_check(options.against.resolve(), options.folder) if options.against else None
        )
        own = measure_check(HERE, options.folder)
        sys.stdout.write(
            f"{own:.2f} s" + (f", other {other:.2f} s, {own / other:.2f}x\n" if other else "\n")
        )
        ratios += [own / other] if other else []
    if ratios:
        sys.stdout.write(
            f"median {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})\n"
        )


if __name__ == "__main__":
    main()
