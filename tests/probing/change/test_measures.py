from __future__ import annotations

import pytest
import torch

from lightning_mllm.probing.change.measures import BEFORE, BEHIND, measure_change
from lightning_mllm.probing.features.extraction import ExtractedSamples

N = 80
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(N, 10, generator=DRAW)
NOISE = torch.randn(N, 10, generator=DRAW)
MOVED = torch.arange(N) < N // 2  # half of the pictures
Y = torch.where(MOVED[:, None], NOISE, X)
IDS = tuple(f"s{k}" for k in range(N))


def extracted(rows: list[int]) -> ExtractedSamples:
    vectors = {BEFORE.name: X[rows], BEHIND.name: Y[rows]}
    ids = tuple(f"q{place}" for place in range(len(rows)))
    return ExtractedSamples(ids, torch.full((len(rows),), -1), vectors)


def test_several_questions_about_a_picture_count_once() -> None:
    once, twice = list(range(N)), [*range(N), *range(N)]
    names = {f"q{place}": IDS[row] for place, row in enumerate(twice)}

    one, two = (list(measure_change(extracted(rows), names).rows()) for rows in (once, twice))

    assert one == two
    assert one[0]["n"] == N
    assert one[0]["low_95"] < one[0]["value"] < one[0]["high_95"]
    assert one[0]["chance"] == 10 / (N - 1)


def test_a_permutation_test_finds_that_changed_pictures_are_answered_wrongly() -> None:
    names = {f"q{row}": IDS[row] for row in range(N)}
    changes = measure_change(extracted(list(range(N))), names, neighbours=(5,))
    linked = {IDS[row]: float(not MOVED[row]) for row in range(N)}
    unlinked = {IDS[row]: float(row % 2) for row in range(N)}

    found = {row["scorer"]: row for row in changes.link({"yes": linked, "no": unlinked})}

    assert found["yes"]["p"] < 0.001
    assert found["yes"]["right"] > found["yes"]["wrong"]
    assert (found["yes"]["n_right"], found["yes"]["n_wrong"]) == (N / 2, N / 2)
    assert found["no"]["p"] > 0.05


def test_answers_that_are_all_right_say_nothing() -> None:
    names = {f"q{row}": IDS[row] for row in range(N)}
    changes = measure_change(extracted(list(range(N))), names, neighbours=(5,))

    (row,) = changes.link({"exact_match": dict.fromkeys(IDS, 1.0)})

    assert row["wrong"] is None
    assert row["p"] != row["p"]  # NaN
    assert row["right"] == pytest.approx(next(iter(changes.rows()))["value"])
