"""`lightning report`: one HTML file with a run's pictures, curves, tables and settings."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.text import Text

from lightning_mllm.cli.commands import PROGRAM
from lightning_mllm.cli.sentence_parser import SentenceParser
from lightning_mllm.progress import console
from lightning_mllm.tracking.report.page import write_report


def run(name: str, arguments: list[str]) -> None:
    """Write the page, and say where it is and what it leaves out."""
    options = _parser(f"{PROGRAM} {name}").parse_args(arguments)
    output = options.output or options.run / "report.html"
    written = write_report(options.run, output, full=options.full)
    size = f"{written.size / 1e6:.1f} MB, {written.samples} samples with pictures"
    console.print(Text(f"Written to {written.path} ({size})"), soft_wrap=True)
    for sentence in written.left_out:
        console.print(Text(f"  {sentence}"), soft_wrap=True)
    if written.left_out:
        console.print(Text("  --full writes a page with everything."), soft_wrap=True)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = SentenceParser(
        prog=prog,
        allow_abbrev=False,
        description="Write one HTML file of a run: pictures with maps, curves, tables, settings. "
        "It needs no network and no server.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="Folder of a run, e.g. runs/<name>.")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="The file; one that exists is replaced. Default: RUN/report.html.",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="Keep every sample, layer and row, and 255 levels of numbers, however large the file. "
        "Without it the page has about 5 MB at most.",
    )
    return parser
