"""From rows of patches to numbers per kind, patch, window and direction, and to figures."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.analysis.patching.engine.base import DIRECTIONS
from lightning_mllm.analysis.patching.headline import make_patching_headline
from lightning_mllm.analysis.patching.measures import (
    COLUMNS,
    ESTIMATES,
    MEASURES,
    PatchCells,
    patch_contrast,
    patch_measures,
)
from lightning_mllm.analysis.patching.patch import Patch
from lightning_mllm.progress import track
from lightning_mllm.statistics.interval import STATISTICS, missing_interval
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.statistics.picture_bootstrap import Bootstrap
from lightning_mllm.statistics.question_table import (
    KeptQuestions,
    count_questions,
    pivot_question_table,
)
from lightning_mllm.types import Segment, Table

logger = logging.getLogger(__name__)

_VERBS = {"denoising": "restored", "noising": "lost"}


def summarise_patching(
    table: Table,
    *,
    name: str = "patching",
    contrasts: Sequence[tuple[str, str]] = (),
    kind_depth: int | None = None,
    bootstrap: Bootstrap = Bootstrap(),
    settings: Mapping[str, Any] | None = None,
) -> AnalysisResult:
    """Return the numbers of rows, with their intervals over pictures.

    Pairs that have a picture in common, directly or through others, are drawn together.

    Args:
        table: Rows of `PatchRow`.
        name: Name of the result.
        contrasts: Pairs of patches; their differences come after the patches. Pairs of samples
            whose random patches could not avoid the object count in no contrast with such patches.
        kind_depth: How many parts of a kind's name (a/b/c) tell kinds apart; by default all.
        bootstrap: How intervals are drawn.
        settings: What decided the rows.

    Returns:
        On the axes kind, patch, layers, direction, measure and statistic. A window is named by its
        layers: "3", or "3-4". The last three measures are there if effects were estimated.
    """
    table = _join_pictures(table)
    kept, sweep = KeptQuestions.of(table, kind_depth), _PatchSweep.of(table)
    pairs = list(contrasts) if sweep.patches else []
    estimates = bool(np.isfinite(table["estimate"]).any())
    coords: dict[str, tuple[Any, ...]] = {
        "kind": tuple(kept.groups),
        "patch": (*sweep.patches, *(f"{ours} minus {theirs}" for ours, theirs in pairs)),
        "layers": sweep.layers,
        "direction": DIRECTIONS,
        "measure": (*MEASURES, *(ESTIMATES if estimates else ())),
        "statistic": STATISTICS,
    }
    values = missing_interval(coords)
    cells = sweep.cells(table, kept.ids)
    fair = sweep.without_overlap(cells, table, kept.ids)
    kinds = kept.groups.items() if len(kept.ids) else ()
    for index, (kind, rows) in enumerate(track(kinds, f"{name}: intervals of kinds")):
        draws = bootstrap.draw(kept.pictures[rows], kind)
        own = {column: each[rows].reshape(len(rows), -1) for column, each in cells.items()}
        found = [patch_measures(own, draws, estimates=estimates)]
        for pair in pairs:
            ours, theirs = (_take_patch(fair, rows, sweep.patches.index(each)) for each in pair)
            found.append(patch_contrast(ours, theirs, draws, estimates=estimates))
        values[index] = np.concatenate([each.reshape(-1, *values.shape[2:]) for each in found])
    _warn_of_nothing(table, sweep.patches, name)
    more = {"kind_depth": kind_depth, "bootstrap": asdict(bootstrap)}
    decided = {**(settings or {}), **more, "found": _count(table, kept, kind_depth)}
    plots = _make_plots(sweep, [*kept.groups])
    headline = make_patching_headline(values[0, ..., 0, :], coords["patch"], sweep.layers)
    return AnalysisResult(
        name, values, tuple(coords), coords, len(kept.ids), decided, plots, headline
    )


@dataclass(frozen=True, eq=False)
class _PatchSweep:
    """What was patched in the rows, and in which layers.

    Attributes:
        patches: In the order of the rows.
        layers: Names of the windows: single layers first, then wider ones.
        named: (rows,), the name of a row's window.
    """

    patches: tuple[str, ...]
    layers: tuple[str, ...]
    named: NDArray[Any]

    @classmethod
    def of(cls, table: Table) -> _PatchSweep:
        measured = table["measured"]
        windows = np.stack([table["start"], table["stop"]], axis=1)
        names = [f"{a}" if b - a == 1 else f"{a}-{b - 1}" for a, b in windows.tolist()]
        found = {(b - a, a, b) for a, b in windows[measured].tolist()}
        ordered = tuple(f"{a}" if n == 1 else f"{a}-{b - 1}" for n, a, b in sorted(found))
        patches = tuple(dict.fromkeys(table["patch"][measured].tolist()))
        return cls(patches, ordered, np.array(names, dtype=np.str_))

    def cells(self, table: Table, pairs: NDArray[Any]) -> dict[str, Floats]:
        """Return each column as (pairs, patches, layers, directions); NaN where nothing is."""
        noising = table["direction"] == "noising"
        whole = table["d_clean"] - table["d_corrupted"]
        base = np.where(noising, table["d_clean"], table["d_corrupted"])
        sign = np.where(noising, -1.0, 1.0)
        full = {
            **table,
            "whole": whole,
            "effect": sign * (table["d_patched"] - base),
            "estimate": sign * table["estimate"],
        }
        return {column: self._pivot(full, column, pairs) for column in COLUMNS}

    def without_overlap(
        self, cells: PatchCells, table: Table, pairs: NDArray[Any]
    ) -> dict[str, Floats]:
        """Return the cells without those of random patches that could not avoid the object."""
        random = []
        for patch in map(Patch.parse, self.patches):
            at = patch.positions
            random.append(at is not None and Segment.IMAGE_RANDOM in at.segments)
        overlap = self._pivot(table, "overlap", pairs) > 0
        unfair = np.array(random, dtype=bool)[:, None, None] & overlap
        return {column: np.where(unfair, np.nan, each) for column, each in cells.items()}

    def _pivot(self, table: Table, column: str, pairs: NDArray[Any]) -> Floats:
        axes = {"patch": self.patches, "layers": self.layers, "direction": DIRECTIONS}
        there = table["measured"] & (table["size"] > 0)
        return pivot_question_table({**table, "layers": self.named}, column, axes, pairs, there)


def _join_pictures(table: Table) -> Table:
    """Name the pictures of pairs alike that have one in common, also through other pairs."""
    from scipy.sparse import coo_array  # type: ignore[import-untyped]  # noqa: PLC0415
    from scipy.sparse.csgraph import (  # type: ignore[import-untyped]  # noqa: PLC0415
        connected_components,
    )

    own = table["picture"]
    if not len(own):
        return table
    other = np.where(table["partner_picture"] == "", own, table["partner_picture"])
    names, numbers = np.unique(np.concatenate([own, other]), return_inverse=True)
    ours, theirs = np.split(numbers.reshape(-1), 2)
    shape = (len(names), len(names))
    edges = coo_array((np.ones(len(ours), bool), (ours, theirs)), shape=shape)
    _, parts = connected_components(edges, directed=False)
    _, first = np.unique(parts, return_index=True)
    return {**table, "picture": names[first[parts[ours]]]}


def _take_patch(cells: PatchCells, rows: NDArray[np.int64], patch: int) -> dict[str, Floats]:
    return {column: each[rows, patch].reshape(len(rows), -1) for column, each in cells.items()}


def _warn_of_nothing(table: Table, patches: Iterable[str], name: str) -> None:
    """Warn of patches that have no position in any pair."""
    for patch in patches:
        own = table["measured"] & (table["patch"] == patch)
        if not table["size"][own].any():
            count = len(np.unique(table["sample_id"][own]))
            logger.warning(
                "%s: '%s' patches nothing in any of %d pairs: none has such a position.",
                name,
                patch,
                count,
            )


def _count(table: Table, kept: KeptQuestions, kind_depth: int | None) -> dict[str, Any]:
    """Return numbers of pairs, of pictures, and of pairs that are left out or lack something."""
    measured = table["measured"]
    reasons = Counter(table["left_out"][~measured].tolist())
    overlap = np.unique(table["sample_id"][measured & (table["overlap"] > 0)])
    return {
        "pairs": count_questions(table, kind_depth),
        "left_out": dict(sorted(reasons.items())),
        "pictures": kept.count_pictures(),
        "with_control_overlap": len(overlap),
        "engines": np.unique(table["engine"][measured]).tolist(),
    }


def _make_plots(sweep: _PatchSweep, kinds: Sequence[str]) -> tuple[ResultPlot, ...]:
    """Return a plot per direction of what is patched in windows; heads have layers of their own."""
    shown = {patch: patch for patch in sweep.patches if not Patch.parse(patch).heads}
    plots = []
    for direction, verb in _VERBS.items() if shown else ():
        plots.append(
            ResultPlot(
                name=verb,
                style="lines",
                x="layers",
                y="patch",
                shown=shown,
                fixed={"measure": MEASURES[0], "direction": direction},
                xlabel="Layers that are patched",
                label=f"Share {verb}",
                title=f"Share of the answers' logit difference that is {verb} ({direction})",
                panels=tuple(kinds),
            )
        )
    return tuple(plots)
