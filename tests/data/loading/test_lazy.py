from __future__ import annotations

import pytest

from lightning_mllm.data.loading.lazy import LazySamples
from lightning_mllm.types import Sample


def test_lazy_samples_are_a_sequence() -> None:
    made: list[int] = []
    samples = LazySamples(5, lambda index: made.append(index) or Sample(id=str(index)))  # type: ignore[func-returns-value]

    assert len(samples) == 5
    assert made == []
    assert samples[-1].id == "4"
    assert [sample.id for sample in samples[1:3]] == ["1", "2"]
    assert [sample.id for sample in samples] == [*"01234"]
    with pytest.raises(IndexError):
        samples[5]
