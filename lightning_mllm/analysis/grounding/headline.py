"""What a reader looks at first: how much likelier answers are with their own picture."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.statistics.missing import Floats


def make_grounding_headline(values: Floats, kinds: Sequence[str], others: int) -> Headline:
    """Return, for each kind, how the own picture does against others, and against none.

    Args:
        values: (kinds, pictures, measures, 4), the statistics.
        kinds: Names of the kinds.
        others: With how many other pictures each sample is scored.
    """
    rows = []
    for kind, (_, against, blind, _) in zip(kinds, values, strict=True):
        rows.append(
            (
                kind or "all",
                format_estimate(against[1], 2),
                format_estimate(against[2], 1),
                format_estimate(against[3], 1),
                format_estimate(blind[1], 2),
                format_count(against[1]),
            )
        )
    among = others + 1
    caption = (
        "How much likelier the answer is with its own picture than with another's, how often it is "
        f"(by chance 50 %), how often the own one is the likeliest of {among} (by chance "
        f"{100 / among:g} %), and how much likelier than with a blank one."
    )
    columns = ("kind", "by (nats)", "likelier (%)", f"1 of {among} (%)", "than blank (nats)", "N")
    return Headline(caption, columns, tuple(rows))
