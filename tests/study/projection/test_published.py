from __future__ import annotations

import math
from collections.abc import Iterable

import pytest

from lightning_mllm.study.projection.published import (
    DOMAINS,
    TABLE_1,
    TABLE_2,
    TABLE_2_MLLM_CHANGES,
    TABLE_3,
)

STATES = ("zero_shot", "ft_proj", "ft_e2e")
CELLS = [(state, domain) for state in STATES[1:] for domain in DOMAINS.values()]
AGRICULTURE, TEXTURES, DERMATOLOGY, HUMANITARIAN = DOMAINS.values()


@pytest.mark.parametrize(("state", "domain"), CELLS)
def test_the_reported_changes_follow_from_the_reported_scores(state: str, domain: str) -> None:
    richness = 100 * (TABLE_2[state][domain].macro_f1 / TABLE_2["zero_shot"][domain].macro_f1 - 1)
    model = 100 * (TABLE_1[state][domain].macro_f1 / TABLE_1["zero_shot"][domain].macro_f1 - 1)

    assert TABLE_2[state][domain].change in (round(richness, 2), math.trunc(100 * richness) / 100)
    assert TABLE_2_MLLM_CHANGES[state][domain] == round(model, 2)


def test_every_domain_is_in_every_row() -> None:
    rows: list[Iterable[str]] = [
        *TABLE_1.values(),
        *TABLE_2.values(),
        *TABLE_2_MLLM_CHANGES.values(),
        TABLE_3,
    ]
    assert {tuple(row) for row in rows} == {tuple(DOMAINS.values())}
    assert all(row.change is None for row in TABLE_2["zero_shot"].values())


@pytest.mark.parametrize(
    ("state", "macro_f1", "accuracy"),
    [
        ("random uniform", 0.3399, 0.3704),
        ("CLIP zero-shot", 1.4669, 1.6595),
        ("zero_shot", 0.8773, 0.9743),
        ("ft_proj", 1.5885, 1.7686),
        ("ft_e2e", 2.6327, 2.8039),
    ],
)
def test_the_rows_of_table_1_have_the_sums_of_the_papers(
    state: str, macro_f1: float, accuracy: float
) -> None:
    assert sum(scores.macro_f1 for scores in TABLE_1[state].values()) == pytest.approx(macro_f1)
    assert sum(scores.accuracy for scores in TABLE_1[state].values()) == pytest.approx(accuracy)


def test_the_rows_of_tables_2_and_3_have_the_sums_of_the_papers() -> None:
    richness = {state: sum(row.macro_f1 for row in TABLE_2[state].values()) for state in STATES}

    assert richness == pytest.approx({"zero_shot": 2.2705, "ft_proj": 1.7077, "ft_e2e": 2.1321})
    assert sum(scores.macro_f1 for scores in TABLE_3.values()) == pytest.approx(2.8187)
    assert sum(scores.accuracy for scores in TABLE_3.values()) == pytest.approx(2.9486)


@pytest.mark.parametrize(
    ("state", "domain", "right", "samples"),
    [
        ("random uniform", AGRICULTURE, 8, 236),
        ("random uniform", TEXTURES, 41, 1880),
        ("CLIP zero-shot", AGRICULTURE, 106, 236),
        ("CLIP zero-shot", TEXTURES, 937, 1880),
        ("CLIP zero-shot", DERMATOLOGY, 961, 4002),
        ("zero_shot", TEXTURES, 402, 1880),
        ("ft_proj", TEXTURES, 875, 1880),
        ("ft_e2e", AGRICULTURE, 154, 236),
    ],
)
def test_some_accuracies_are_those_of_one_run_on_the_whole_test_split(
    state: str, domain: str, right: int, samples: int
) -> None:
    assert TABLE_1[state][domain].accuracy == round(right / samples, 4)


def test_the_reported_tables_say_what_the_paper_claims() -> None:
    for domain in DOMAINS.values():
        for measure in ("macro_f1", "accuracy"):
            scores = [getattr(TABLE_1[state][domain], measure) for state in STATES]
            assert scores == sorted(scores)
        richness = {state: TABLE_2[state][domain].macro_f1 for state in STATES}
        assert richness["ft_proj"] < richness["ft_e2e"] < richness["zero_shot"]
        for better, worse in (
            (TABLE_3, TABLE_1["ft_e2e"]),
            (TABLE_1["CLIP zero-shot"], TABLE_1["zero_shot"]),
        ):
            assert (better[domain].macro_f1 > worse[domain].macro_f1) == (domain != HUMANITARIAN)
