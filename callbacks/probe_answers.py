"""Beside each other: what a probe reads from the features, and what the model answers.

A sample falls into one of four cells: both are right, the probe alone, the model alone, neither.
Where the probe alone is right in what the model was asked, the features may have the answer without
the LLM saying it; a probe is right by chance, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_mllm.probing import ProbeScore
from lightning_mllm.statistics.shares import Share

CELLS = ("both_right", "probe_only", "model_only", "both_wrong")
CELL_COLUMNS = tuple(f"{cell}{end}" for cell in CELLS for end in ("", "_low_95", "_high_95"))


def share_probe_cells(
    score: ProbeScore, right: Mapping[str, bool], pictures: Mapping[str, str]
) -> dict[str, Any]:
    """Return the share of the samples in each cell, with its interval over pictures, and N.

    A sample counts once per seed of the probe; its seeds are not taken as independent.

    Args:
        score: The predictions of the probe.
        right: Sample id -> whether the model's answer is right.
        pictures: Sample id -> what it is about.

    Returns:
        Column -> number; empty where the model has answered none of the samples.
    """
    rows = [row for row, sample_id in enumerate(score.sample_ids) if sample_id in right]
    if not rows:
        return {}
    ids = [score.sample_ids[row] for row in rows]
    read = (score.predictions == score.targets)[:, rows].numpy()  # (seeds, samples)
    answered = np.broadcast_to([right[sample_id] for sample_id in ids], read.shape)
    about = np.tile([pictures[sample_id] for sample_id in ids], len(read))
    cells = {
        "both_right": read & answered,
        "probe_only": read & ~answered,
        "model_only": ~read & answered,
        "both_wrong": ~read & ~answered,
    }
    found: dict[str, Any] = {"n": len(rows), "seeds": len(read)}
    for cell, counted in cells.items():
        share = Share.of(about, counted.ravel())
        low, high = share.interval
        found |= {cell: share.value, f"{cell}_low_95": low, f"{cell}_high_95": high}
    return found
