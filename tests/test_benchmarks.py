"""What benchmarks say of their measurements."""

from __future__ import annotations

import numpy as np

from tests.benchmarks.skipping import interval_of_median, what_is_saved


def test_time_saved_beyond_the_operations_saved_is_not_told_without_a_word() -> None:
    operations, rounds = 0.124, np.linspace(-0.02, 0.02, 41)

    within, near, beyond = (
        what_is_saved(operations, (centre + rounds).tolist()) for centre in (0.09, 0.128, 0.18)
    )

    assert within.startswith("12.4 % of the operations are skipped, and 9.0 % (8.")
    assert "QUOTE" not in within
    assert "within what rounds differ by, but above it: DON'T QUOTE IT" in near
    assert "18.0 % (17." in beyond and "more than the operations explain: DON'T QUOTE IT" in beyond


def test_the_interval_of_a_median_holds_it_and_narrows_with_more_rounds() -> None:
    generator = np.random.default_rng(0)
    covered, widths = [], []
    for count in (11, 41):
        ends = np.array(
            [interval_of_median(each.tolist()) for each in generator.exponential(size=(500, count))]
        )
        covered.append(((ends[:, 0] <= np.log(2)) & (np.log(2) <= ends[:, 1])).mean())
        widths.append((ends[:, 1] - ends[:, 0]).mean())

    assert min(covered) >= 0.93
    assert widths[1] < 0.7 * widths[0]
    assert interval_of_median([3.0, 1.0, 2.0]) == (1.0, 3.0)
