"""The pages' summaries are what their shipped rows say."""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from lightning_mllm.statistics.shares import share_interval

FOLDER = Path(__file__).parents[2] / "docs" / "information_flow" / "all_layers"


def test_the_information_flows_summary_is_what_its_rows_say() -> None:
    changes, flips = defaultdict(list), defaultdict(list)
    with gzip.open(FOLDER / "rows.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["correct"] == "0" or row["empty"] == "1":
                continue
            task = "/".join(row["kind"].split("/")[:2])
            block = "ceiling" if row["ceiling"] == "1" else row["block"]
            for kind in ("all", task, f"{task}: {row['reference']}"):
                changes[kind, block].append(
                    100 * (float(row["p_after"]) / float(row["p_before"]) - 1)
                )
                flips[kind, block].append(float(row["flipped"]))
    seen = 0
    with (FOLDER / "summary.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = row["kind"], row["block"]
            if key not in changes:
                assert " minus " in row["block"]
                continue
            seen += 1
            assert int(row["n"]) <= len(changes[key])
            if row["measure"] == "mean_change_percent":
                assert float(row["value"]) == pytest.approx(np.mean(changes[key]), abs=0.01)
            if row["measure"] == "flip_rate":  # each question has a picture of its own
                ends = share_interval(np.array(flips[key])[:, None], np.arange(len(flips[key])))[
                    :, 0
                ]
                found = [float(row[name]) for name in ("value", "low_95", "high_95")]
                assert found == pytest.approx([np.mean(flips[key]), *ends], abs=1e-5)
    assert seen > 4000


def test_the_pages_shares_of_the_ceiling_are_those_of_the_summary() -> None:
    with (FOLDER / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if row["measure"] == "change_of_ceiling_percent"
        ]
    ends = ("value", "low_95", "high_95")
    found = {
        (row["kind"], row["block"]): [round(float(row[end])) for end in ends]
        for row in rows
        if row["low_95"]
    }
    page = (FOLDER.parents[1] / "information_flow.md").read_text(encoding="utf-8")
    head, _, *lines = (
        page[page.index("| the picture hidden from |") :].partition("\n\n")[0].splitlines()
    )
    tasks = [cell.strip() for cell in head.split("|")[2:-1]]
    for line in lines:
        hidden, *cells = (cell.strip(" *") for cell in line.split("|")[1:-1])
        target = {"suffix and last": "last+suffix"}.get(hidden, hidden.replace(" and ", "+"))
        for task, cell in zip(tasks, cells, strict=True):
            low_high = cell.replace("[", "").replace("]", "").replace(",", "").split()
            assert [*map(int, low_high)] == found[f"seen/{task}", f"image->{target}"], (
                hidden,
                task,
            )
    assert len(lines) == 6
