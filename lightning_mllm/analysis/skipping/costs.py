"""A warning where nothing is saved though it should be."""

from __future__ import annotations

import logging

import numpy as np

from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.types import Table

logger = logging.getLogger(__name__)


def warn_of_no_costs_saved(name: str, skip: Skip, table: Table) -> None:
    """Warn of cases that should skip tokens of prompts, but skip none in any sample.

    They are found by their costs, which are those with nothing skipped.

    Args:
        name: Name of the analysis.
        skip: What its cases have in common.
        table: Rows of the cases, see `SkippingRow`.
    """
    if skip.phase == "decode":  # costs are of the reference answer, not of the generated one
        return
    due = (
        table["measured"]
        & (table["percent"] > 0)
        & ~np.char.startswith(table["computation"], "parallel")
    )
    rows: dict[tuple[str, int, float], list[int]] = {}
    for row in np.flatnonzero(due).tolist():
        case = (table["computation"][row], table["start"][row], table["percent"][row])
        rows.setdefault(case, []).append(row)
    for (computation, start, percent), own in rows.items():
        if (table["flops"][own] == table["flops_clean"][own]).all():
            logger.warning(
                "%s: %s from layer %d on is skipped for none of the %s tokens of %d samples: %g "
                "%% of them is less than one token.",
                *(name, computation, start, skip.tokens, len(own), percent),
            )
