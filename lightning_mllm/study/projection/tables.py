"""The paper's Tables 1 and 2, and the verdicts, as rows and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from lightning_mllm.statistics.seeds_and_samples import (
    Measure,
    SeedScores,
    relative_change_over_seeds,
)
from lightning_mllm.study.engine.markdown import markdown
from lightning_mllm.study.projection import published
from lightning_mllm.study.projection.comparison import DomainComparison, Kind
from lightning_mllm.study.projection.study import ZERO_SHOT
from lightning_mllm.study.projection.verdict import ProjectionVerdict

TABLE_COLUMNS = (
    *("checkpoint", "preset", "domain", "state", "measure", "value", "low_95", "high_95"),
    *("change_percent", "change_low_95", "change_high_95"),
    *("seeds", "n", "published", "published_change_percent"),
)
VERDICT_COLUMNS = (
    *("checkpoint", "preset", "claim", "part", "domain", "verdict"),
    *("difference", "low_95", "high_95", "p", "p_holm", "seeds", "n", "test"),
)

_TITLES = {"macro_f1": "macro-F1", "accuracy": "accuracy"}
_TABLE_2: dict[Kind, tuple[str, Measure]] = {
    "richness": ("richness (macro-F1)", "macro_f1"),
    "model": ("MLLM macro-F1", "macro_f1"),
    "probe-only": ("probe right, MLLM wrong (share)", "accuracy"),
}


@dataclass(frozen=True)
class TableEntry:
    """A number of a table: of a state (a policy or a baseline) in a domain.

    Attributes:
        comparison: The domain, with its seeds and number of samples.
        preset: Preset that the table is about.
        state: Name of the policy or the baseline.
        measure: Name of the score.
        scores: The score of each seed, or a number without an interval.
        original: Scores of the untrained model, which the change is against.
        published: The number in the paper.
        published_change: The change in the paper, in %.
    """

    comparison: DomainComparison
    preset: str
    state: str
    measure: str
    scores: SeedScores | float
    original: SeedScores | None = None
    published: float | None = None
    published_change: float | None = None

    def row(self) -> list[Any]:
        """Return the row of the CSV file."""
        value, low, high = self._with_interval()
        change = self._change() or (None, None, None)
        return [
            *(self.comparison.checkpoint, self.preset, self.comparison.domain),
            *(self.state, self.measure, value, low, high, *change),
            *(len(self.comparison.seeds), self.comparison.samples),
            *(self.published, self.published_change),
        ]

    def text(self) -> str:
        """Return the number with its interval and change, for people."""
        value, low, high = self._with_interval()
        text = f"{value:.4f}" if low is None else f"{value:.4f} [{low:.4f}, {high:.4f}]"
        changes = self._change()
        if changes is not None:
            change, low_change, high_change = changes
            text += f"<br>{_signed(change)} %"
            if low_change is not None and high_change is not None:
                text += f" [{_signed(low_change)}, {_signed(high_change)}]"
        return text

    def published_text(self) -> str:
        """Return the number in the paper with its change; empty if the paper has none."""
        if self.published is None:
            return ""
        change = self.published_change
        return f"{self.published:.4f}" + ("" if change is None else f" ({change:+.2f} %)")

    def _with_interval(self) -> tuple[float, float | None, float | None]:
        if isinstance(self.scores, SeedScores):
            return (self.scores.mean, *self.scores.interval)
        return self.scores, None, None

    def _change(self) -> tuple[Decimal | None, Decimal | None, Decimal | None] | None:
        """Return the change against the original and the ends of its interval, in %."""
        if self.original is None or not isinstance(self.scores, SeedScores):
            return None
        change = relative_change_over_seeds(self.scores, self.original)
        if change is None:
            return None
        value, low, high = change
        return round_table_percent(value), round_table_percent(low), round_table_percent(high)


def round_table_percent(value: float) -> Decimal | None:
    """Round to two decimals, half to even as the number is written; NaN becomes None.

    For example, -27.486 becomes -27.49, and 0.125 becomes 0.12.
    """
    if math.isnan(value):
        return None
    return Decimal(repr(float(value))).quantize(Decimal("0.01"), ROUND_HALF_EVEN)


def _signed(number: Decimal | None) -> str:
    return "None" if number is None else f"{number:+}"


def table_1(comparison: DomainComparison, preset: str, policies: Sequence[str]) -> list[TableEntry]:
    """Return macro-F1 and accuracy of chance, baselines and policies."""
    models: list[tuple[str, Kind, str]] = [
        ("CLIP zero-shot", "clip", ZERO_SHOT),
        ("image-only", "image-only", ZERO_SHOT),
    ]
    models += [(policy, "model", policy) for policy in (ZERO_SHOT, *policies)]
    measures: tuple[Measure, ...] = ("macro_f1", "accuracy")
    entries = []
    for measure in measures:
        reported = _published_1(comparison.domain, measure)
        scores: dict[str, SeedScores | float | None] = {
            "random uniform": comparison.uniform[measure]
        }
        for state, kind, policy in models:
            scores[state] = comparison.get(kind, policy, preset, measure)
        for state, own in scores.items():
            if own is not None:
                entry = TableEntry(
                    comparison, preset, state, measure, own, published=reported.get(state)
                )
                entries.append(entry)
    return entries


def table_2(comparison: DomainComparison, preset: str, policies: Sequence[str]) -> list[TableEntry]:
    """Return richness, the MLLM's macro-F1 and what only the probe gets right, of each state.

    Of the first two there are the changes by training, too.
    """
    entries = []
    for kind, (title, measured) in _TABLE_2.items():
        untrained = comparison.get(kind, ZERO_SHOT, "", measured)
        for policy in (ZERO_SHOT, *policies):
            scores = comparison.get(kind, policy, preset, measured)
            if scores is None:
                continue
            value, change = _published_2(kind, policy, comparison.domain)
            original = None if policy == ZERO_SHOT or kind == "probe-only" else untrained
            entry = TableEntry(comparison, preset, policy, title, scores, original, value, change)
            entries.append(entry)
    return entries


def _published_1(domain: str, measure: Measure) -> dict[str, float]:
    """Return the paper's numbers of a domain: state -> score."""
    paper = published.DOMAINS.get(domain)
    if paper is None:
        return {}
    rows = {state: by_domain[paper] for state, by_domain in published.TABLE_1.items()}
    rows["image-only"] = published.TABLE_3[paper]
    return {state: getattr(row, measure) for state, row in rows.items()}


def _published_2(kind: Kind, policy: str, domain: str) -> tuple[float | None, float | None]:
    """Return the paper's score and change of a policy in a domain."""
    paper = published.DOMAINS.get(domain)
    if policy not in published.TABLE_2 or paper is None or kind == "probe-only":
        return None, None
    if kind == "richness":
        row = published.TABLE_2[policy][paper]
        return row.macro_f1, row.change
    change = published.TABLE_2_MLLM_CHANGES.get(policy, {}).get(paper)
    return published.TABLE_1[policy][paper].macro_f1, change


def projection_table_as_markdown(entries: Iterable[TableEntry]) -> str:
    """Return a table of one preset: a row per measure and state, a column per domain.

    The published numbers are below.
    """
    rows: dict[tuple[str, str], dict[str, TableEntry]] = {}
    domains: dict[str, None] = {}  # in order
    for entry in entries:
        domains[entry.comparison.domain] = None
        rows.setdefault((entry.measure, entry.state), {})[entry.comparison.domain] = entry
    ours, reported = [], []
    for (measure, state), row in rows.items():
        title = _TITLES.get(measure, measure)
        texts = [row[domain].text() if domain in row else "" for domain in domains]
        ours.append([title, state, *texts])
        texts = [row[domain].published_text() if domain in row else "" for domain in domains]
        if any(texts):
            reported.append([title, f"{state}, {published.LABEL}", *texts])
    return markdown(["measure", "state", *domains], [*ours, *reported])


def projection_verdict_table_row(verdict: ProjectionVerdict) -> list[Any]:
    """Return the row of the CSV file."""
    numbers: tuple[float | None, ...] = (None, None, None, None)
    if verdict.outcome is not None:
        outcome = verdict.outcome
        numbers = (outcome.value, *outcome.interval, outcome.p)
    return [
        *(verdict.checkpoint, verdict.preset, verdict.claim, verdict.part, verdict.domain),
        *(str(verdict.decision), *numbers, verdict.adjusted_p),
        *(verdict.seeds, verdict.samples, verdict.test),
    ]


def projection_verdicts_table(found: Iterable[ProjectionVerdict]) -> str:
    """Return one row per claim and part, one column per domain, and one for all."""
    domains: dict[str, None] = {}  # in order
    by_row: dict[tuple[str, str, str, str], dict[str, ProjectionVerdict]] = {}
    for each in found:
        domains[each.domain] = None
        key = (each.checkpoint, each.preset, each.claim, each.part)
        by_row.setdefault(key, {})[each.domain] = each
    rows = []
    for (checkpoint, preset, claim, part), row in by_row.items():
        texts = [_verdict_text(row[domain]) if domain in row else "" for domain in domains]
        largest = max(row.values(), key=lambda verdict: verdict.samples)
        size = f"{largest.seeds} seeds, {largest.samples} samples"
        name = f"- {part}" if part else f"**{claim}**"
        rows.append([checkpoint, preset, name, *texts, size])
    return markdown(["checkpoint", "preset", "claim", *domains, "N"], rows)


def _verdict_text(verdict: ProjectionVerdict) -> str:
    """Return the decision with difference and p-value; in bold for the whole claim."""
    if verdict.outcome is not None and verdict.adjusted_p is not None:
        p_value = "< 0.001" if verdict.adjusted_p < 0.001 else f"{verdict.adjusted_p:.3f}"
        return f"{verdict.decision} ({verdict.outcome.value:+.3f}, p {p_value})"
    known = f"{verdict.decision}" + ("" if verdict.seeds else ", nothing finished")
    return known if verdict.part else f"**{known}**"
