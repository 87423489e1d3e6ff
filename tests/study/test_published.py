from __future__ import annotations

import math

import pytest

from lightning_mllm.study.published import DOMAINS, TABLE_1, TABLE_2, TABLE_2_MLLM_CHANGES, TABLE_3

STATES = ("zero_shot", "ft_proj", "ft_e2e")
CELLS = [(state, domain) for state in STATES[1:] for domain in DOMAINS.values()]


@pytest.mark.parametrize(("state", "domain"), CELLS)
def test_the_reported_changes_follow_from_the_reported_scores(state: str, domain: str) -> None:
    richness = 100 * (TABLE_2[state][domain].macro_f1 / TABLE_2["zero_shot"][domain].macro_f1 - 1)
    model = 100 * (TABLE_1[state][domain].macro_f1 / TABLE_1["zero_shot"][domain].macro_f1 - 1)

    assert TABLE_2[state][domain].change in (round(richness, 2), math.trunc(100 * richness) / 100)
    assert TABLE_2_MLLM_CHANGES[state][domain] == round(model, 2)


def test_the_reported_tables_say_what_the_paper_claims() -> None:
    for domain in DOMAINS.values():
        for measure in ("macro_f1", "accuracy"):
            scores = [getattr(TABLE_1[state][domain], measure) for state in STATES]
            assert scores == sorted(scores)
        richness = {state: TABLE_2[state][domain].macro_f1 for state in STATES}
        assert richness["ft_proj"] < richness["ft_e2e"] < richness["zero_shot"]
        assert 0 < TABLE_3[domain].macro_f1 < 1
