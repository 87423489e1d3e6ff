"""What the command line costs before it works, in CPU time, as a multiple of `import torch`.

    python tests/benchmarks/startup.py
    python tests/benchmarks/startup.py --against ../older

Each command is run in a process of its own, in turn with one that only imports torch, and with that
of another source tree. Commands of this tree must end as they should, so that nothing is timed that
fails for another reason.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parents[2]
QUICKSTART = ("fit", "--config", str(HERE / "configs" / "quickstart.yaml"))
# what is typed; whether the command ends well
CASES: tuple[tuple[tuple[str, ...], bool], ...] = (
    (("--help",), True),
    (("--version",), True),
    (("completion", "bash"), True),
    (("configs", "copied"), True),
    (("fti",), False),
    (("fit",), False),
    ((*QUICKSTART, "--model.lr", "1"), False),
    ((*QUICKSTART, "--trainer.callbacks", "ProbeEachEpok"), False),
    (("fit", "--config", "quikstart.yaml"), False),
    (("tiny", "--help"), True),
    (("study", "--help"), True),
    ((*QUICKSTART, "--print_config"), True),
)


def measure_process(arguments: Sequence[str], tree: Path, ends_well: bool = True) -> float:
    """Return the user and system seconds of one Python process in an empty folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if (done.returncode == 0) != ends_well and tree == HERE:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="Root of another source tree.")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", default="", help="Only commands with this text.")
    options = parser.parse_args()
    trees = [HERE] if options.against is None else [HERE, options.against.resolve()]
    cases = [case for case in CASES if options.only in " ".join(case[0])]
    measure_process(["-c", "import torch"], HERE)  # files are in memory from here on
    ratios: dict[tuple[str, ...], list[list[float]]] = {case: [] for case, _ in cases}
    for _ in range(options.repetitions):
        for case, ends_well in cases:
            torch = measure_process(["-c", "import torch"], HERE)
            command = ["-m", "lightning_mllm", *case]
            ratios[case].append([measure_process(command, t, ends_well) / torch for t in trees])
    table = Table(
        "command", *(f"times `import torch`, {tree.name}" for tree in trees), box=MARKDOWN
    )
    for case, rows in ratios.items():
        columns = [
            f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
            for values in zip(*rows, strict=True)
        ]
        typed = " ".join(case).replace(f"{HERE}/", "")
        table.add_row(f"lightning {typed}", *columns)
    console = Console(width=120, highlight=False)
    console.print(f"CPU time; medians of {options.repetitions} repetitions (smallest to largest).")
    console.print(table)


if __name__ == "__main__":
    main()
