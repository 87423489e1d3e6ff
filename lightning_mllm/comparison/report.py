"""A comparison as tables for the terminal, which fit into 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lightning_mllm.comparison.comparison import Comparison
from lightning_mllm.comparison.differences import ScoreDifference
from lightning_mllm.comparison.run_files import CONFIG, ComparedRun
from lightning_mllm.statistics.interval import Interval

_MOST_OPTIONS = 15  # that are shown; all are in the file
_MOST_CHARACTERS = 200  # of a value that is shown
_LEAST_P = 0.001
_WIDEST_NAME = 21  # that the table of scores has room for


def report_comparison(comparison: Comparison) -> Iterator[RenderableType]:
    """Yield what is shown: which options differ, the scores, and what limits them."""
    if comparison.options:
        yield Text("What the configs say differently:")
        yield _table_of_options(comparison)
    else:
        yield Text(_explain_no_options(comparison.runs))
    for name in comparison.without_test:
        yield Text(f"{name} has no test: validations are compared.")
    named = ", ".join(_name_evaluation(run) for run in comparison.runs)
    yield Text(f"Compared on the same samples: {named}")
    yield _table_of_scores(comparison)
    for name, count in comparison.left_out.items():
        yield Text(
            f"Of {name} {count} samples are left out, because not all runs were evaluated on them."
        )
    if comparison.scorers_left_out:
        named = ", ".join(comparison.scorers_left_out)
        yield Text(f"Left out, because not all runs have its answers: {named}.")
    first = comparison.differences[0]
    if first.pictures < first.n:
        yield Text(
            f"The {first.n} samples are about {first.pictures} pictures. The intervals of "
            "accuracies know that. The test and the intervals of macro-F1 count them as "
            "independent: p is too small, and these intervals are too narrow, where they are not."
        )


def _table_of_options(comparison: Comparison) -> Table:
    table = Table("option")
    table.columns[0].overflow = "fold"
    for run in comparison.runs:
        table.add_column(_break_name(run.name), overflow="fold")
    for option, values in list(comparison.options.items())[:_MOST_OPTIONS]:
        table.add_row(Text(option), *(Text(_shorten(value)) for value in values))
    if (more := len(comparison.options) - _MOST_OPTIONS) > 0:
        table.caption = f"and {more} more, in config_differences.csv"
    return table


def _table_of_scores(comparison: Comparison) -> Table:
    several = len(comparison.runs) > 2
    caption = (
        f"N = {comparison.samples} samples that all runs answered; brackets: 95 % intervals\n"
        "won, lost: samples that only this run, or only the baseline, has right\n"
        "p: McNemar's exact test of won against lost"
    )
    if several:
        caption += f", by Holm for {len(comparison.runs) - 1} comparisons"
    table = Table("", caption=caption)
    table.columns[0].overflow = "fold"
    for column in ("score", "difference", "won", "lost", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    shown = ""
    for each in comparison.differences:
        if each.score != shown:
            table.add_section()
            table.add_row(Text(each.score, style="bold"))
            table.add_row(_break_name(each.baseline), f"{each.baseline_value:.3f}", "baseline")
            shown = each.score
        tested = () if math.isnan(each.p) else (str(each.won), str(each.lost))
        p = () if math.isnan(each.p) else (_format_p(each.p_holm),)
        table.add_row(
            _break_name(each.run), f"{each.value:.3f}", _format_difference(each), *tested, *p
        )
    return table


def _name_evaluation(run: ComparedRun) -> str:
    """Return run and evaluation; of an evaluation that was named, the name says both."""
    return run.name if run.is_evaluation else f"{run.name} ({run.stage})"


def _explain_no_options(runs: Sequence[ComparedRun]) -> str:
    if len({run.folder for run in runs}) == 1:
        return f"{'Both' if len(runs) == 2 else 'All'} are from the run {runs[0].folder.name}."
    if any(not (run.folder / CONFIG).is_file() for run in runs):  # then none has one
        return f"The runs have no {CONFIG}, so nothing is known of what was set differently."
    return "The configs of the runs say the same."


def _break_name(name: str) -> Text:
    """Return run and evaluation, on a line each if one is too short for both."""
    return Text(name if len(name) <= _WIDEST_NAME else "/\n".join(name.rsplit("/", 1)))


def _shorten(value: str) -> str:
    return value if len(value) <= _MOST_CHARACTERS else f"{value[:_MOST_CHARACTERS]} ..."


def _format_difference(of: ScoreDifference) -> str:
    interval = _format_ends(of.interval)
    return f"{of.difference:+.3f} {interval}".rstrip()


def _format_ends(interval: Interval) -> str:
    return "" if math.isnan(interval.low) else f"[{interval.low:+.3f}, {interval.high:+.3f}]"


def _format_p(p: float) -> str:
    return f"{p:.3f}" if p >= _LEAST_P else f"<{_LEAST_P}"
