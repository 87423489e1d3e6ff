"""Compares runs, and writes what is found into a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_mllm.comparison.answers import (
    common_scorers,
    match_answers,
    other_scorers,
    read_run_answers,
)
from lightning_mllm.comparison.config_differences import find_config_differences
from lightning_mllm.comparison.differences import (
    DIFFERENCE_COLUMNS,
    ScoreDifference,
    compare_answers,
)
from lightning_mllm.comparison.metrics import join_analyses, read_compared_curves
from lightning_mllm.comparison.run_files import ComparedRun, open_compared_runs
from lightning_mllm.errors import ConfigError
from lightning_mllm.store.files import write_csv_file
from lightning_mllm.tracking.figures.comparison import draw_compared_curves


@dataclass(frozen=True)
class Comparison:
    """What is known of some runs on the same samples.

    Attributes:
        runs: The runs; the first one is the baseline.
        samples: Number of samples that all runs have answered.
        left_out: Name of a run -> how many of its samples another run does not have.
        scorers_left_out: Scorers that some runs have, but not all.
        differences: Scores of each run and of the baseline.
        options: Option -> its value in each run, where they differ.
        without_test: Runs without a test, for whose sake validations are compared.
    """

    runs: Sequence[ComparedRun]
    samples: int
    left_out: Mapping[str, int]
    scorers_left_out: Sequence[str]
    differences: Sequence[ScoreDifference]
    options: Mapping[str, Sequence[str]]
    without_test: Sequence[str] = ()


def compare_runs(paths: Sequence[Path], split: str | None = None) -> Comparison:
    """Compare the answers and the configs of runs.

    Args:
        paths: Folders of runs, or of evaluations in them; the first one is the baseline.
        split: Which split is compared, see `open_compared_runs`.

    Raises:
        ConfigError: There are fewer than two runs, one is named twice, or one is no run.
        DataError: The runs have no answers on the same samples, or a file is damaged.
    """
    runs = open_compared_runs(paths, split)
    answers = [read_run_answers(run) for run in runs]
    samples = match_answers(answers)
    scorers = common_scorers(answers)
    left_out = {each.run.name: len(each.truth) - len(samples) for each in answers}
    return Comparison(
        runs=runs,
        samples=len(samples),
        left_out={name: count for name, count in left_out.items() if count},
        scorers_left_out=other_scorers(answers, scorers),
        differences=compare_answers(answers, samples, scorers),
        options=find_config_differences(runs),
        without_test=[] if split else _find_without_test(runs),
    )


def _find_without_test(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the runs without a test, if their last validation was chosen for that."""
    chosen = [run for run in runs if run.stage.startswith("val-") and not run.is_evaluation]
    return [run.name for run in chosen if "test" not in run.evaluations()]


def write_comparison(comparison: Comparison, output: Path) -> list[Path]:
    """Write the tables, and a figure of the curves; return the files.

    Args:
        comparison: What was found.
        output: The folder to write to; it must be empty or new.

    Raises:
        ConfigError: The folder can't be made.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The folder {output} can't be made: {error}. Choose another --output."
        ) from error
    names = [run.name for run in comparison.runs]
    cells = (each.cells() for each in comparison.differences)
    options = ([option, *values] for option, values in comparison.options.items())
    written = [
        write_csv_file(output / "comparison.csv", DIFFERENCE_COLUMNS, cells),
        write_csv_file(output / "config_differences.csv", ["option", *names], options),
    ]
    for name, (columns, rows) in join_analyses(comparison.runs).items():
        written.append(write_csv_file(output / f"analysis-{name}.csv", columns, rows))
    if curves := read_compared_curves(comparison.runs):
        drawn = draw_compared_curves(curves, output / "curves.png")
        written += [drawn] if drawn.is_file() else []
    return written
