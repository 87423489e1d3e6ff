"""What a reader looks at first: how much likelier answers are with their own picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.statistics.missing import Floats


def make_grounding_headline(
    values: Floats, kinds: Sequence[str], shown: Mapping[int, str], others: int
) -> Headline:
    """Return how the own picture does against each of the others, and per kind against the first.

    Args:
        values: (kinds, pictures, measures, 4), the statistics.
        kinds: Names of the kinds; the first is of all.
        shown: Number of a picture that is compared with -> what it is called; others' come first.
        others: With how many other pictures each sample is scored.
    """
    rows = []
    for picture, label in shown.items():
        rows.append(_make_row(label, values[0, picture]))
    first, label = next(iter(shown.items()))
    for kind, own in zip(kinds[1:], values[1:], strict=True):
        rows.append(_make_row(f"{label}, {kind}", own[first]))
    among = others + 1
    caption = (
        "How much likelier the answer is with its own picture than with these, how often it is "
        f"(by chance 50 %), and how often the own one is the likeliest of {among} (by chance "
        f"{100 / among:g} %). Where pictures share an answer, the best is below 100 %."
    )
    return Headline(
        caption,
        ("against", "by (nats)", "likelier (%)", f"1 of {among} (%)", "N"),
        tuple(rows),
    )


def _make_row(label: str, measures: Floats) -> tuple[str, ...]:
    """Return a row from (measures, 4) statistics."""
    _, ahead, likelier, found = measures
    return (
        label,
        format_estimate(ahead, 2),
        format_estimate(likelier, 1),
        format_estimate(found, 1),
        format_count(ahead),
    )
