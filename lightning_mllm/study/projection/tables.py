"""The paper's Tables 1 and 2, and the verdicts, as rows and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from lightning_mllm.statistics.seeds_and_samples import Measure, Scores, relative_change
from lightning_mllm.study.engine.markdown import _header, _line
from lightning_mllm.study.projection import published
from lightning_mllm.study.projection.comparison import Comparison, Kind
from lightning_mllm.study.projection.study import ZERO_SHOT
from lightning_mllm.study.projection.verdict import Verdict

TABLE_COLUMNS = (
    *("checkpoint", "preset", "domain", "state", "measure", "value", "low_95", "high_95"),
    *("change_percent", "change_low_95", "change_high_95", "seeds", "n", "published", "published_change_percent"),
)
VERDICT_COLUMNS = (
    *("checkpoint", "preset", "claim", "part", "domain", "verdict", "difference", "low_95", "high_95"),
    *("p", "p_holm", "seeds", "n", "test"),
)

_TITLES = {"macro_f1": "macro-F1", "accuracy": "accuracy"}


@dataclass(frozen=True)
class Entry:
    """A number of a table: of a state (a policy or a baseline) in a domain."""

    comparison: Comparison
    preset: str
    state: str
    measure: str
    scores: Scores | float
    original: Scores | None = None
    published: float | None = None
    published_change: float | None = None

    def cells(self) -> list[Any]:
        """Return the row of the CSV file."""
        value, low, high = _with_interval(self.scores)
        change = self._change()
        return [
            *(self.comparison.checkpoint, self.preset, self.comparison.domain, self.state, self.measure),
            *(value, low, high),
            *((None, None, None) if change is None else map(rounded, change)),
            *(len(self.comparison.seeds), self.comparison.samples, self.published, self.published_change),
        ]

    def text(self) -> str:
        """Return the number with its interval and change, for people."""
        value, low, high = _with_interval(self.scores)
        text = f"{value:.4f}" if low is None else f"{value:.4f} [{low:.4f}, {high:.4f}]"
        change = self._change()
        if change is not None:
            percent, *ends = (number if number is None else f"{number:+}" for number in map(rounded, change))
            text += f"<br>{percent} %" + (f" [{ends[0]}, {ends[1]}]" if None not in ends else "")
        return text

    def _change(self) -> tuple[float, float, float] | None:
        if self.original is None or not isinstance(self.scores, Scores):
            return None
        return relative_change(self.scores, self.original)


def rounded(value: float) -> Decimal | None:
    """Round half to even, to two decimals, as the number is written: -27.486 is -27.49, 0.125 is 0.12; NaN is None."""
    if math.isnan(value):
        return None
    return Decimal(repr(float(value))).quantize(Decimal("0.01"), ROUND_HALF_EVEN)


def table_1(comparison: Comparison, preset: str, policies: Sequence[str]) -> list[Entry]:
    """Return macro-F1 and accuracy of chance, baselines and policies."""
    entries = []
    paper = published.DOMAINS.get(comparison.domain, "")
    measures: tuple[Measure, ...] = ("macro_f1", "accuracy")
    for measure in measures:
        reported = {state: getattr(row[paper], measure) for state, row in published.TABLE_1.items() if paper in row}
        if paper in published.TABLE_3:
            reported["image-only"] = getattr(published.TABLE_3[paper], measure)
        models: list[tuple[Kind, str, str]] = [
            ("clip", ZERO_SHOT, "CLIP zero-shot"),
            ("image-only", ZERO_SHOT, "image-only"),
        ]
        models += [("model", policy, policy) for policy in (ZERO_SHOT, *policies)]
        numbers: dict[str, Scores | float | None] = {"random uniform": comparison.uniform[measure]}
        numbers |= {state: comparison.get(kind, policy, preset, measure) for kind, policy, state in models}
        for state, scores in numbers.items():
            if scores is not None:
                entries.append(Entry(comparison, preset, state, measure, scores, published=reported.get(state)))
    return entries


def table_2(comparison: Comparison, preset: str, policies: Sequence[str]) -> list[Entry]:
    """Return richness and the MLLM's macro-F1 of each state, and their changes against the original."""
    entries = []
    paper = published.DOMAINS.get(comparison.domain, "")
    kinds: dict[Kind, str] = {"richness": "richness (macro-F1)", "model": "MLLM macro-F1"}
    for kind, title in kinds.items():
        original = comparison.get(kind, ZERO_SHOT, "", "macro_f1")
        for policy in (ZERO_SHOT, *policies):
            scores = comparison.get(kind, policy, preset, "macro_f1")
            if scores is None:
                continue
            value, change = _published_2(kind, policy, paper)
            against = None if policy == ZERO_SHOT else original
            entries.append(Entry(comparison, preset, policy, title, scores, against, value, change))
    return entries


def _published_2(kind: Kind, policy: str, paper: str) -> tuple[float | None, float | None]:
    if policy not in published.TABLE_2 or not paper:
        return None, None
    if kind == "richness":
        row = published.TABLE_2[policy][paper]
        return row.macro_f1, row.change
    return published.TABLE_1[policy][paper].macro_f1, published.TABLE_2_MLLM_CHANGES.get(policy, {}).get(paper)


def as_markdown(entries: Sequence[Entry]) -> str:
    """Return a table of one preset: a row per measure and state, a column per domain; the published ones below."""
    domains = list(dict.fromkeys(entry.comparison.domain for entry in entries))
    lines = _header(["measure", "state", *domains])
    reported: list[str] = []
    for measure, state in dict.fromkeys((entry.measure, entry.state) for entry in entries):
        row = {e.comparison.domain: e for e in entries if (e.measure, e.state) == (measure, state)}
        title = _TITLES.get(measure, measure)
        lines.append(_line([title, state, *(row[d].text() if d in row else "" for d in domains)]))
        if any(entry.published is not None for entry in row.values()):
            numbers = [_published_text(row.get(domain)) for domain in domains]
            reported.append(_line([title, f"{state}, {published.LABEL}", *numbers]))
    return "\n".join([*lines, *reported])


def verdict_row(verdict: Verdict) -> list[Any]:
    """Return the row of the CSV file."""
    outcome = verdict.outcome
    numbers = (None,) * 4 if outcome is None else (outcome.value, *outcome.interval, outcome.p)
    return [
        *(verdict.checkpoint, verdict.preset, verdict.claim, verdict.part, verdict.domain, str(verdict.decision)),
        *(*numbers, verdict.adjusted_p, verdict.seeds, verdict.samples, verdict.test),
    ]


def verdicts_as_markdown(found: Sequence[Verdict]) -> str:
    """Return one row per claim and part, one column per domain, and one for all."""
    domains = list(dict.fromkeys(verdict.domain for verdict in found))
    by_row: dict[tuple[str, str, str, str], dict[str, Verdict]] = {}
    for each in found:
        by_row.setdefault((each.checkpoint, each.preset, each.claim, each.part), {})[each.domain] = each
    lines = _header(["checkpoint", "preset", "claim", *domains, "N"])
    for (checkpoint, preset, claim, part), row in by_row.items():
        texts = [_verdict_text(row[domain], bold=not part) if domain in row else "" for domain in domains]
        size = max(row.values(), key=lambda verdict: verdict.samples)
        name = f"- {part}" if part else f"**{claim}**"
        lines.append(_line([checkpoint, preset, name, *texts, f"{size.seeds} seeds, {size.samples} samples"]))
    return "\n".join(lines)


def _verdict_text(verdict: Verdict, *, bold: bool) -> str:
    if verdict.outcome is not None and verdict.adjusted_p is not None:
        p = "< 0.001" if verdict.adjusted_p < 0.001 else f"{verdict.adjusted_p:.3f}"
        return f"{verdict.decision} ({verdict.outcome.value:+.3f}, p {p})"
    known = f"{verdict.decision}" + ("" if verdict.seeds else ", nothing finished")
    return f"**{known}**" if bold else known


def _published_text(entry: Entry | None) -> str:
    if entry is None or entry.published is None:
        return ""
    return f"{entry.published:.4f}" + ("" if entry.published_change is None else f" ({entry.published_change:+.2f} %)")


def _with_interval(scores: Scores | float) -> tuple[float, float | None, float | None]:
    return (scores.mean, *scores.interval) if isinstance(scores, Scores) else (scores, None, None)
