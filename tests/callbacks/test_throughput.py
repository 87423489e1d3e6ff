from __future__ import annotations

import itertools
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from lightning_mllm.batches import MultimodalBatch, TokenSpans
from lightning_mllm.callbacks import Throughput
from tests.callbacks.conftest import Study


def test_rates_and_memory_are_logged_and_shown(study: Study) -> None:
    logged = (study.folder / "metrics.csv").read_text().splitlines()[0].split(",")
    keys = {"throughput/samples_per_s", "throughput/tokens_per_s", "throughput/peak_mib"}
    shown = {"samples/s", "tokens/s", "peak MiB"}

    assert keys <= set(logged)
    assert shown <= set(study.progress_bar)
    assert study.progress_bar["peak MiB"] > 50


def batch_with(tokens: list[int]) -> MultimodalBatch:
    mask = (torch.arange(max(tokens)) < torch.tensor(tokens)[:, None]).long()
    return MultimodalBatch(
        input_ids=mask,
        attention_mask=mask,
        labels=mask,
        spans=TokenSpans({}),
        targets=torch.zeros(len(tokens)),
        sample_ids=tuple(map(str, tokens)),
        pictures=tuple(map(str, tokens)),
        kinds=(None,) * len(tokens),
        answers=(None,) * len(tokens),
        images=(),
        image_counts=(0,) * len(tokens),
        pad_id=0,
        end_id=1,
        steps=mask,
    )


def run_batches(
    callback: Throughput, batches: list[MultimodalBatch], validate_after: int | None = None
) -> dict[str, Any]:
    """Run the hooks of training as Lightning does; returns what was logged last."""
    module = MagicMock(device=torch.device("cpu"))
    for index, batch in enumerate(batches):
        callback.on_train_batch_start(MagicMock(), module, batch, index)
        callback.on_train_batch_end(MagicMock(), module, None, batch, index)
        if index == validate_after:
            callback.on_validation_start(MagicMock(), module)
    return {
        call.args[0]: call.args[1]
        for call in module.log.call_args_list
        if call.kwargs.get("logger", True)
    }


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(step=2.0)  # two seconds pass between looks
    monkeypatch.setattr(
        "lightning_mllm.callbacks.throughput.time.perf_counter", lambda: next(ticks)
    )


@pytest.mark.usefixtures("clock")
def test_rates_count_real_tokens_only() -> None:
    rates = run_batches(Throughput(every_n_steps=2), [batch_with([3, 5]), batch_with([4])])

    assert rates["throughput/samples_per_s"] == 1.5
    assert rates["throughput/tokens_per_s"] == 6.0


@pytest.mark.usefixtures("clock")
def test_a_window_with_a_validation_in_it_is_dropped() -> None:
    assert (
        run_batches(
            Throughput(every_n_steps=2), [batch_with([3]), batch_with([4])], validate_after=0
        )
        == {}
    )
