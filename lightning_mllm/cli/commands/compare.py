"""`lightning compare`: compares finished runs on the same samples."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.text import Text

from lightning_mllm.cli.commands import PROGRAM
from lightning_mllm.cli.sentence_parser import SentenceParser
from lightning_mllm.comparison.comparison import compare_runs, write_comparison
from lightning_mllm.comparison.report import report_comparison
from lightning_mllm.errors import ConfigError
from lightning_mllm.progress import console


def run(name: str, arguments: list[str]) -> None:
    """Show the comparison, and say where its files are."""
    options = _parser(f"{PROGRAM} {name}").parse_args(arguments)
    paths: list[Path] = options.runs
    if baseline := options.baseline:
        if baseline.resolve() not in [path.resolve() for path in paths]:
            raise ConfigError(
                f"--baseline {baseline} is none of the runs {', '.join(map(str, paths))}. Name "
                "one of them, as it stands there."
            )
        paths = sorted(paths, key=lambda path: path.resolve() != baseline.resolve())
    comparison = compare_runs(paths, options.split)
    for each in report_comparison(comparison):
        console.print(each)
    output = _free_folder(options.output)
    names = ", ".join(file.name for file in write_comparison(comparison, output))
    console.print(Text(f"Written to {output}: {names}"), soft_wrap=True)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = SentenceParser(
        prog=prog,
        allow_abbrev=False,
        description="Compare runs: paired tests on the same samples, configs, curves.",
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="Folder of a run, or of one evaluation in it (RUN/evaluation/test-step320). The "
        "first one is the baseline.",
    )
    parser.add_argument("--baseline", type=Path, help="The run that the others are compared with.")
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="Split whose answers are compared: test, val or zero_shot. By default the test split "
        "where all runs have it, else the validation split; always the last step.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("comparison"),
        metavar="FOLDER",
        help="Folder for tables and figure; one that exists is never touched: the next is "
        "FOLDER-2. Default: comparison.",
    )
    return parser


def _free_folder(folder: Path) -> Path:
    """Return a folder that is not there yet, or is empty: the given one, or one with a number."""
    number = 1
    while True:
        path = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return path
        number += 1
