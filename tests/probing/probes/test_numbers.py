from __future__ import annotations

import pytest
import torch
from sklearn.metrics import r2_score  # type: ignore[import-untyped]
from torch import Tensor

from lightning_mllm.errors import DataError
from lightning_mllm.probing.probes.numbers import ProbedNumbers, probe_numbers

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(200, 6, generator=DRAW)
LAW = X.double() @ torch.arange(6).double() + 10
NOISE = 3 * torch.randn(200, generator=DRAW).double()


def numbers(rows: slice, values: Tensor, pictures: int = 200) -> ProbedNumbers:
    chosen = range(200)[rows]
    return ProbedNumbers(
        features={"post-mean": X[rows], "pre-mean": X[rows, :2]},
        numbers=values[rows],
        sample_ids=tuple(f"s{k}" for k in chosen),
        pictures=tuple(f"p{k % pictures}" for k in chosen),
    )


def probe(values: Tensor, pictures: int = 200) -> dict[str, float]:
    splits = (numbers(slice(0, 120), values), numbers(slice(120, 200), values, pictures))
    return {point: score.r2 for point, score in probe_numbers(*splits).items()}


def test_a_law_is_read_and_noise_is_not() -> None:
    assert probe(LAW)["post-mean"] == pytest.approx(1, abs=1e-6)
    assert probe(LAW)["pre-mean"] < 0.5  # the features of the law are not all there
    assert probe(NOISE)["post-mean"] < 0.1


def test_the_score_is_r2_of_the_test_samples_within_its_interval() -> None:
    values = LAW + NOISE
    train, test = numbers(slice(0, 120), values), numbers(slice(120, 200), values)

    score = probe_numbers(train, test)["post-mean"]

    assert score.r2 == pytest.approx(r2_score(test.numbers.numpy(), score.predicted.numpy()))
    assert score.interval.low < score.r2 < score.interval.high < 1
    assert (score.n_train, score.n_test) == (120, 80)


def test_samples_of_few_pictures_say_less() -> None:
    values = LAW + NOISE

    def width(pictures: int) -> float:
        test = numbers(slice(120, 200), values, pictures)
        interval = probe_numbers(numbers(slice(0, 120), values), test)["post-mean"].interval
        return interval.high - interval.low

    assert width(4) != width(200)
    with pytest.raises(DataError, match="9 training pictures, which is too few"):
        probe_numbers(numbers(slice(0, 120), values, 9), numbers(slice(120, 200), values))
