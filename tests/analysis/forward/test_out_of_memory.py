"""Engines keep to a budget of memory, and go on with less at a time when it runs out."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from lightning_mllm.analysis import KnockoutEngine, ReferenceEngine, SuffixEngine
from lightning_mllm.analysis.forward.out_of_memory import MemoryPieces
from lightning_mllm.analysis.forward.suffix.budget import BudgetPlan
from lightning_mllm.analysis.forward.suffix.clean_run import CleanRun
from lightning_mllm.models.layers import decoder_layers
from tests.support.decoders import PAPER, apart, count_hooks, make_backbone, make_batch, sweep


@pytest.mark.parametrize(
    "engine", [ReferenceEngine(), SuffixEngine(strict=True)], ids=lambda each: each.name
)
def test_out_of_memory_the_engine_goes_on_with_less_at_a_time(
    tiny_llava: str, caplog: pytest.LogCaptureFixture, engine: KnockoutEngine
) -> None:
    backbone, batch = make_backbone(tiny_llava), make_batch(tiny_llava, numbers=(0, 1, 2))
    cases = sweep(PAPER[:4], 2)
    whole = engine.run(backbone, batch, cases)
    hooks, length = count_hooks(backbone), batch.prompts().input_ids.shape[1]

    def full(module: nn.Module, inputs: Any) -> None:
        if inputs[0].shape[0] > 1 or inputs[0].shape[1] > length:
            raise torch.OutOfMemoryError("full")

    handle = decoder_layers(backbone)[2].register_forward_pre_hook(full)
    with caplog.at_level(logging.WARNING):
        found = engine.run(backbone, batch, cases)
    handle.remove()

    assert "Out of memory with 3 prompts at a time; going on with 1." in caplog.text
    assert (engine.name == "suffix") == ("knockouts at a time" in caplog.text)
    assert apart(whole, found) < 1e-12
    assert count_hooks(backbone) == hooks


def test_what_does_not_fit_even_alone_is_an_error() -> None:
    def full(piece: Any) -> None:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        MemoryPieces("things").run([1, 2, 3], 3, full)


def test_the_size_that_fitted_is_kept_for_a_while() -> None:
    pieces, seen, room = MemoryPieces("things"), [], 2

    def note(piece: Any) -> int:
        seen.append(len(piece))
        if len(piece) > room:
            raise torch.OutOfMemoryError("full")
        return len(piece)

    assert pieces.run(range(7), 5, note) == [2, 2, 2, 1]
    assert pieces.run(range(3), 5, note) == [2, 1]
    assert seen == [5, 2, 2, 2, 1, 2, 1]
    room = 5
    assert pieces.run(range(200), 5, note)[-1] == 5


def test_what_fits_is_counted_in_weights() -> None:
    pieces = MemoryPieces("things")

    def run(weight: int) -> list[int]:
        def fill(piece: Any) -> int:
            if len(piece) * weight > 12:
                raise torch.OutOfMemoryError("full")
            return len(piece)

        return pieces.run(range(12), 12, fill, weight=weight)

    assert [run(weight) for weight in (1, 4, 1)] == [[12], [3, 3, 3, 3], [12]]
    with pytest.raises(torch.OutOfMemoryError):
        pieces.run(range(2), 2, lambda piece: run(13), halve=False)


def test_one_shortage_with_several_prompts_leaves_the_knockouts_side_by_side(
    tiny_llava: str,
) -> None:
    backbone, batch = make_backbone(tiny_llava), make_batch(tiny_llava, numbers=(0, 1))
    engine, cases = SuffixEngine(strict=True), sweep(PAPER[:4], 2)
    calls: list[int] = []

    def full_once(module: nn.Module, inputs: Any) -> None:
        calls.append(inputs[0].shape[0])
        if len(calls) == 2:
            raise torch.OutOfMemoryError("full")

    one = make_batch(tiny_llava, numbers=(0,))
    engine.run(backbone, one, cases)
    handle = decoder_layers(backbone)[-1].register_forward_pre_hook(full_once)
    engine.run(backbone, batch, cases)
    calls.clear()
    calls += [0, 0]  # so that nothing is full any more
    engine.run(backbone, one, cases)
    handle.remove()

    groups = 2  # `->last` and `->question`
    assert calls[2:] == [1] * (1 + groups)


def test_a_small_budget_changes_nothing_but_the_pieces(
    tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, batch, cases = make_backbone(tiny_llava), make_batch(tiny_llava), sweep(PAPER, 1, 5)
    prompts: list[int] = []
    clean_run = CleanRun.of

    def count_prompts(backbone: Any, some: Any, tail: Any) -> CleanRun:
        prompts.append(len(some))
        return clean_run(backbone, some, tail)

    monkeypatch.setattr(CleanRun, "of", count_prompts)

    plenty = SuffixEngine(memory=2**33).run(backbone, batch, cases)
    scarce = SuffixEngine(memory=1).run(backbone, batch, cases)

    assert apart(plenty, scarce) < 1e-12
    assert prompts == [1, 2, 1, 1, 1]  # each engine tries out one first


@pytest.mark.parametrize("gib", [8, 24, 80])
def test_a_7b_model_is_planned_within_the_budget(gib: int) -> None:
    class Llama7B:
        num_hidden_layers, hidden_size, intermediate_size = 32, 4096, 11008
        num_attention_heads, num_key_value_heads = 32, 32

    length, questions = 644, 16
    plan = BudgetPlan.of(Llama7B, length, torch.float16, gib * 2**30)
    prompts = plan.prompts(questions)
    kept = 32 * length * 3 * 4096 * 2  # keys, values, residuals of a prompt

    assert prompts * kept < gib * 2**29
    assert prompts == questions or (prompts + 1) * 2 * kept > gib * 2**29
    for start in (611, 643):
        rows = (length - start) * plan.side_by_side(start, prompts)
        passing = prompts * rows * ((8 * 4096 + 3 * 11008) * 2 + 32 * (start + rows) * 4)
        assert 0 < prompts * kept + passing < gib * 2**30
        assert rows >= length - start
