"""Writes the page: everything that it shows is in the file, and nothing is loaded from elsewhere.

All that a run says is one deflated JSON text, so that no name or answer of a data set can end the
script that it is in; the page writes it by `textContent` only. The maps of a sample are opened when
it is chosen.
"""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from lightning_mllm.store.files import write_text
from lightning_mllm.tracking.report.packing import PackingDetail, deflate_to_base64
from lightning_mllm.tracking.report.pictures import MapPass, find_map_passes, pack_map_pass
from lightning_mllm.tracking.report.run_files import (
    check_run_folder,
    read_report_answers,
    read_report_curves,
    read_report_figures,
    read_report_scores,
    read_report_settings,
    read_report_tables,
)

LIMIT = 5_000_000  # bytes of a page that is not a full one
_ROWS = 300  # of a table
_SCRIPTS = (  # in the order in which they use each other
    "dom.js",
    "tables.js",
    "curves.js",
    "maps.js",
    "canvas.js",
    "drawing.js",
    "controls.js",
    "reading.js",
    "pictures.js",
    "report.js",
)
_CHART = ("uPlot.iife.min.js", "uPlot.min.css")  # of `vendored`, see its README
# tried in this order, until the page is small enough
_DETAILS = (
    PackingDetail(levels=16, word_layers=9, samples=50),
    PackingDetail(levels=16, value_layers=9, word_layers=9, samples=50),
    PackingDetail(levels=16, value_layers=9, word_layers=5, samples=50),
    PackingDetail(levels=16, value_layers=9, word_layers=5, samples=25),
    PackingDetail(levels=16, value_layers=5, word_layers=5, samples=10),
)


@dataclass(frozen=True)
class WrittenReport:
    """What was written.

    Attributes:
        path: The file.
        size: How many bytes the file has.
        samples: How many samples can be looked at.
        left_out: As sentences, what of the run it does not have.
    """

    path: Path
    size: int
    samples: int
    left_out: tuple[str, ...]


def write_report(run: Path, output: Path, *, full: bool = False) -> WrittenReport:
    """Write the page of a run.

    Args:
        run: Folder of the run.
        output: The HTML file.
        full: Whether all is kept: every sample, layer and row, and 255 levels of numbers. Without
            it the page has at most `LIMIT` bytes, if tables and figures leave room for the
            pictures.

    Raises:
        ConfigError: There is no run.
        DataError: A file of the run is damaged.
    """
    check_run_folder(run)
    passes = find_map_passes(run)
    fixed = _read_run(run, None if full else _ROWS)
    content = page = ""
    for detail in (PackingDetail(),) if full else _DETAILS:
        packed = [_pack(run, each, detail) for each in passes]
        content = json.dumps({**fixed, "passes": packed}, separators=(",", ":"), allow_nan=False)
        page = _fill_template(run.resolve().name, content)
        if len(page.encode()) <= LIMIT:
            break
    write_text(output, page)
    said: dict[str, None] = {}
    for each in packed:
        said |= dict.fromkeys(each["left_out"])
    if not full and len(page.encode()) > LIMIT:
        said["Tables and figures of this run take more room than a page is to have."] = None
    shown = sum(len(each["samples"]) for each in packed)
    return WrittenReport(output, output.stat().st_size, shown, tuple(said))


def _pack(run: Path, found: MapPass, detail: PackingDetail) -> dict[str, Any]:
    return pack_map_pass(found, detail, read_report_answers(run, found.name))


def _read_run(run: Path, most_rows: int | None) -> dict[str, Any]:
    """Return all but the pictures, as plain data."""
    tables = [read_report_scores(run), *read_report_tables(run, most_rows)]
    return {
        "name": run.resolve().name,
        "written": f"{datetime.now():%Y-%m-%d %H:%M}",
        "curves": read_report_curves(run),
        "tables": [asdict(table) for table in tables if table.rows],
        "figures": read_report_figures(run),
        "settings": read_report_settings(run),
    }


def _fill_template(name: str, content: str) -> str:
    page = _asset("page/template.html")
    parts = {
        "title": html.escape(name),
        "style": _asset(f"vendored/{_CHART[1]}") + _asset("page/style.css"),
        "chart": _close_no_script(_asset(f"vendored/{_CHART[0]}")),
        "script": _close_no_script("\n".join(_asset(f"page/{each}") for each in _SCRIPTS)),
        "data": deflate_to_base64(content.encode()),
    }
    before, *rest = page.split("{{")
    for piece in rest:
        key, _, after = piece.partition("}}")
        before += parts[key] + after
    return before


def _close_no_script(text: str) -> str:
    """Return a script in which nothing looks like the end of one."""
    return text.replace("</", "<\\/")


@cache
def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
