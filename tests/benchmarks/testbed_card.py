"""The tables of the test-bed's model card: every stage under one command.

The command is `lightning test --config configs/runs/testbed/eval.yaml`. Run this:
`python tests/benchmarks/testbed_card.py`. It writes `docs/testbed/<stage>.csv` and prints the
Markdown of `docs/testbed.md`.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_mllm.cli.main import main as lightning
from lightning_mllm.testbed import STAGES, QuestionType, Stage, checkpoint
from lightning_mllm.testbed.language.questions import WORDINGS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs/testbed"
COLUMNS: tuple[tuple[str, Stage, str], ...] = (  # heading, stage, part
    ("instructed", "instructed", "seen"),
    ("held-out pairs", "instructed", "held_out"),
    ("aligned", "aligned", "seen"),
    ("before", "before", "seen"),
    ("blind (instructed)", "instructed", "blind"),
    ("blind (aligned)", "aligned", "blind"),
)
Counts = dict[str, tuple[int, int]]  # kind -> questions, right answers


def measure(stage: Stage) -> Path:
    """Test a stage and return the table that the run wrote."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        lightning(
            [
                *("test", "--config", str(ROOT / "configs/runs/testbed/eval.yaml")),
                *("--model.checkpoint", checkpoint(stage)),
                *("--trainer.run.root", folder, "--trainer.run.wandb", "disabled"),
            ]
        )
        (written,) = Path(folder).glob("*/evaluation/*/exact-match-per-kind.csv")
        DOCS.mkdir(exist_ok=True)
        target = DOCS / f"{stage}.csv"
        target.write_text(written.read_text())
        print(f"{stage}: {time.perf_counter() - began:.0f} s")
    return target


def read(path: Path) -> Counts:
    """Return the counts of a table."""
    with path.open(newline="") as file:
        return {row["kind"]: (int(row["n"]), int(row["correct"])) for row in csv.DictReader(file)}


def table(counts: Mapping[Stage, Counts]) -> str:
    """Return accuracies in %, per type and per wording."""
    lines = [
        "| question | " + " | ".join(heading for heading, *_ in COLUMNS) + " |",
        "|---" * (1 + len(COLUMNS)) + "|",
    ]
    for type in QuestionType:
        wordings = range(len(WORDINGS[type]))
        lines.append(_line(f"**{type}**", counts, [f"{type}/{wording}" for wording in wordings]))
        for wording in wordings:
            lines.append(_line(f"{WORDINGS[type][wording]}", counts, [f"{type}/{wording}"]))
    return "\n".join(lines)


def presence(counts: Mapping[Stage, Counts]) -> str:
    """Return accuracies of the presence questions in %."""
    lines = ["| presence | instructed | aligned | before |", "|---|---|---|---|"]
    for sampling in ("random", "popular", "adversarial"):
        kind = f"presence/{sampling}"
        lines.append(
            f"| {sampling} | "
            + " | ".join(_percent(counts[stage], [kind]) for stage in reversed(STAGES))
            + " |"
        )
    return "\n".join(lines)


def _line(name: str, counts: Mapping[Stage, Counts], kinds: list[str]) -> str:
    cells = (
        _percent(counts[stage], [f"{part}/{kind}" for kind in kinds]) for _, stage, part in COLUMNS
    )
    return f"| {name} | " + " | ".join(cells) + " |"


def _percent(counts: Counts, kinds: list[str]) -> str:
    n, correct = (sum(numbers) for numbers in zip(*(counts[kind] for kind in kinds), strict=True))
    return f"{100 * correct / n:.1f}"


def main() -> None:
    """Measure, unless told to use what is written, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--written", action="store_true", help="use the tables that are there")
    written = parser.parse_args().written
    counts = {stage: read(DOCS / f"{stage}.csv" if written else measure(stage)) for stage in STAGES}
    print(table(counts), presence(counts), sep="\n\n")


if __name__ == "__main__":
    main()
