"""What set-up of large datasets costs: CPU time per row, a second start, and memory that is kept.

Draws the data if they are not there (LLaVA JSON with 12 turns a row, and class folders; pictures
are hard links to 3,000 small JPEGs), and sets them up in this tree and, where it is named, in
another one, each in a process of its own:

    python tests/benchmarks/setup_time.py --folder /tmp/rows --rows 6000 60000 --against ../older

Memory is RssAnon, which other processes can't share: of the process after its first batches, and
of its workers. The ratio is other / ours; above 1 we are faster, or need less.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PICTURES, SIDE, TURNS, IN_FOLDER = 3_000, 32, 12, 1_000
WORDS = "the cat sits on a red mat while two dogs look at it and wait for food near an old house"
HERE = Path(__file__).parents[2]
RESULT = "result: "


def draw_pictures(folder: Path) -> None:
    """Write small JPEGs of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for k in range(PICTURES):
        pixels = draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.jpg")


def draw_rows(folder: Path, pictures: Path, count: int) -> None:
    """Write `train.json`, and its pictures in folders of 1,000, which are classes for folders."""
    draw, words = random.Random(0), WORDS.split()
    folder.mkdir(parents=True)
    with (folder / "train.json").open("w", encoding="utf-8") as file:
        for k in range(count):
            name = f"{k // IN_FOLDER}/{k}.jpg"
            (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(pictures / f"{k % PICTURES}.jpg", folder / "images" / name)
            turns = []
            for turn in range(TURNS):
                text = " ".join(draw.choices(words, k=20))
                who = "gpt" if turn % 2 else "human"
                turns.append({"from": who, "value": text if turn else f"<image>\n{text}"})
            row = {"id": f"{k:012}", "image": name, "conversations": turns}
            file.write(("[" if not k else ",\n") + json.dumps(row))
        file.write("]")


def read_anonymous(process: int | str = "self") -> float:
    """Return the anonymous memory of a process in MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e6


def measure_one(kind: str, folder: Path, checkpoint: str, workers: int, batches: int) -> None:
    """Set a dataset up, load batches, and write what it cost as JSON."""
    from lightning_mllm.data import (  # of the tree that is measured
        ClassificationPrompt,
        ImageFolder,
        LlavaJson,
    )

    options: dict[str, Any] = {"checkpoint": checkpoint, "batch_size": 2, "num_workers": workers}
    images = str(folder / "images")
    if kind == "json":
        data: Any = LlavaJson(train=str(folder / "train.json"), image_root=images, **options)
    else:
        prompt = ClassificationPrompt(lists_classes=False, question="What is it?")
        data = ImageFolder(root=images, prompt=prompt, **options)
    before = read_anonymous()
    cpu, wall = time.process_time(), time.monotonic()
    data.setup("fit")
    found = {
        "cpu": time.process_time() - cpu,
        "wall": time.monotonic() - wall,
        "before": before,
        "set_up": read_anonymous(),
    }
    loader = iter(data.train_dataloader())
    for _ in islice(loader, batches):
        pass
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    now = {"rank": read_anonymous(), "workers": list(map(read_anonymous, children))}
    sys.stdout.write(RESULT + json.dumps({**found, **now}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # nobody waits for the workers


def measure(tree: Path, options: argparse.Namespace, *arguments: object) -> dict[str, Any]:
    """Return what a process of a source tree finds."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", *map(str, arguments)]
    environment = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    environment["XDG_CACHE_HOME"] = str(options.folder / "cache")
    done = subprocess.run(
        command,
        cwd=tree,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    (line,) = (each for each in done.stdout.splitlines() if each.startswith(RESULT))
    found: dict[str, Any] = json.loads(line.removeprefix(RESULT))
    return found


def show(name: str, rows: int, found: dict[str, Any]) -> None:
    """Write a line about a measurement."""
    workers = ", ".join(f"{each:.0f}" for each in found["workers"]) or "none"
    sys.stdout.write(
        f"{name}: {found['cpu']:.1f} s CPU ({found['cpu'] / rows * 1e6:.0f} us a row), "
        f"{found['wall']:.0f} s wall; RssAnon MB: {found['before']:.0f} before, "
        f"{found['set_up']:.0f} set up, {found['rank']:.0f} after batches, workers {workers}\n"
    )
    sys.stdout.flush()


def main() -> None:
    """Draw, measure and show."""
    if sys.argv[1:2] == ["--one"]:
        kind, folder, checkpoint, workers, batches = sys.argv[2:]
        measure_one(kind, Path(folder), checkpoint, int(workers), int(batches))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the data")
    parser.add_argument("--rows", type=int, nargs="+", default=[6_000, 60_000])
    parser.add_argument(
        "--kinds", nargs="+", choices=("json", "folder"), default=["json", "folder"]
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 4])
    parser.add_argument("--batches", type=int, default=1_000)
    parser.add_argument("--against", type=Path, help="root of another source tree")
    options = parser.parse_args()
    from lightning_mllm.models.tiny import TinySize, build_tiny_checkpoint

    checkpoint = options.folder / "checkpoint"
    if not checkpoint.is_dir():
        draw_pictures(options.folder / "pictures")
        build_tiny_checkpoint(checkpoint, "llava", size=TinySize(context=4096))
    for rows in options.rows:
        folder = options.folder / str(rows)
        if not folder.is_dir():
            draw_rows(folder, options.folder / "pictures", rows)
        for kind in options.kinds:
            for number, workers in enumerate(options.workers):
                start = "first start" if not number else f"start {number + 1}"
                arguments = (kind, folder, checkpoint, workers, options.batches)
                own = measure(HERE, options, *arguments)
                show(f"{kind}, {rows:,} rows, {start}, {workers} workers", rows, own)
                if options.against is None:
                    continue
                other = measure(options.against.resolve(), options, *arguments)
                show("  other tree", rows, other)
                memory = sum((other["rank"], *other["workers"]))
                memory /= sum((own["rank"], *own["workers"]))
                sys.stdout.write(f"  CPU {other['cpu'] / own['cpu']:.2f}x, memory {memory:.2f}x\n")


if __name__ == "__main__":
    main()
