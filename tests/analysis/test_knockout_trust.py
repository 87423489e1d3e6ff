"""An engine gives no result that it has no right to: refusals, fallbacks, budgets."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mllm.analysis import (
    Block,
    Case,
    KnockoutEngine,
    ReferenceEngine,
    SuffixEngine,
    Window,
    choose_engine,
    memory,
)
from lightning_mllm.analysis.clean_run import CleanRun
from lightning_mllm.analysis.knockout import decoder_layers
from lightning_mllm.analysis.memory import Pieces, free_bytes
from lightning_mllm.analysis.suffix_plan import Plan
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import MultimodalBatch, Segment, TokenSpans
from tests.analysis.knocking import PAPER, apart, count_hooks, everywhere, make_backbone, make_batch, sweep

CASES = [Case(block, Window(1, 1, 3)) for block in PAPER]
ENGINES = pytest.mark.parametrize("engine", ["reference", "suffix", "auto"])


@pytest.fixture(scope="module")
def backbone(tiny_llava: str) -> Backbone:
    return make_backbone(tiny_llava)


@pytest.fixture(scope="module")
def batch(tiny_llava: str) -> MultimodalBatch:
    return make_batch(tiny_llava)


@ENGINES
@pytest.mark.parametrize("attention", ["blind", "blind in two ways"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_attention_that_ignores_the_mask_is_found_out(
    tiny_llava: str, engine: Any, attention: str, dtype: torch.dtype
) -> None:
    blind = make_backbone(tiny_llava, attention, dtype)

    with pytest.raises(ConfigError, match=rf"attention '{attention}' ignores (the mask|masks)"):
        choose_engine(engine).run(blind, make_batch(tiny_llava, numbers=(0,)), CASES)


@ENGINES
def test_attention_that_takes_no_dense_mask_is_refused(tiny_llava: str, batch: MultimodalBatch, engine: Any) -> None:
    backbone = make_backbone(tiny_llava)
    backbone.decoder.config._attn_implementation_internal = "flash_attention_2"  # type: ignore[union-attr]

    with pytest.raises(ConfigError, match="'flash_attention_2' ignores or rejects"):
        choose_engine(engine).run(backbone, batch, CASES)


def test_another_kind_of_attention_is_checked_anew(tiny_llava: str, batch: MultimodalBatch) -> None:
    backbone, engine, one = make_backbone(tiny_llava), ReferenceEngine(), make_batch(tiny_llava, numbers=(0,))
    engine.run(backbone, one, CASES[:1])
    backbone.model.set_attn_implementation({"text_config": "blind"})

    with pytest.raises(ConfigError, match="ignores the mask"):
        engine.run(backbone, one, CASES[:1])


def see_everything(module: nn.Module, inputs: Any, others: dict[str, Any]) -> Any:
    """Make a prefix LM: all prompt positions see each other."""
    rows, given = inputs[0].shape[1], others["attention_mask"]
    everything = torch.zeros(1, 1, rows, rows, dtype=inputs[0].dtype)
    return (inputs, {**others, "attention_mask": everything}) if given is None else None


def add_features(module: nn.Module, inputs: Any, others: dict[str, Any]) -> Any:
    return inputs, {**others, "features": inputs[0][..., :1]}


def add_between_layers(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output + torch.arange(output.shape[1])[:, None] / output.shape[1]


def of_a_prefix_lm(backbone: Backbone) -> None:
    for layer in decoder_layers(backbone):
        layer.register_forward_pre_hook(see_everything, with_kwargs=True)


def with_more_arguments(backbone: Backbone) -> None:
    decoder_layers(backbone)[1].register_forward_pre_hook(add_features, with_kwargs=True)


def with_features_between_layers(backbone: Backbone) -> None:
    decoder_layers(backbone)[0].register_forward_hook(add_between_layers)


def with_a_sliding_window(backbone: Backbone) -> None:
    """Already so."""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (of_a_prefix_lm, "is not causal or computes something between its layers"),
        (with_features_between_layers, "is not causal or computes something between its layers"),
        (with_more_arguments, "its layers also get 'features'"),
        (with_a_sliding_window, "its layer 0 does not keep the keys and values of all positions"),
    ],
)
def test_a_model_that_does_not_allow_suffixes_gets_the_reference_engine_and_the_log_says_so(
    tiny_llava: str, caplog: pytest.LogCaptureFixture, change: Any, reason: str
) -> None:
    sliding = change is with_a_sliding_window
    backbone = make_backbone(tiny_llava, decoder="mistral", sliding_window=16 if sliding else None)
    change(backbone)
    batch, engine = make_batch(tiny_llava, numbers=(0,)), choose_engine("auto")

    with caplog.at_level(logging.WARNING):
        found = [engine.run(backbone, batch, CASES) for _ in range(2)]

    reference = ReferenceEngine().run(backbone, batch, CASES)
    assert [each.engine for each in found] == ["reference", "reference"]
    assert all(apart(each, reference) == 0 for each in found)
    assert len(caplog.messages) == 1
    assert reason in caplog.text and "The reference engine, which is slower, does the work instead" in caplog.text
    with pytest.raises(ConfigError, match=rf"can't be used with this Llava.*{reason}.*engine=reference"):
        choose_engine("suffix").run(backbone, batch, CASES)


def test_the_clean_run_is_replayed_once_for_each_model(backbone: Backbone, batch: MultimodalBatch) -> None:
    calls: list[int] = []
    layer = decoder_layers(backbone)[0]
    handle = layer.register_forward_pre_hook(lambda *_: calls.append(1))
    engine = SuffixEngine(strict=True)

    counts = []
    for _ in range(3):
        engine.run(backbone, batch, [Case(PAPER[0], everywhere())])
        counts.append(len(calls))
        calls.clear()
    handle.remove()

    assert counts == [8, 2, 2]  # clean run and rows; before, two clean runs, two replays, and twice two rows


@pytest.mark.parametrize("engine", [ReferenceEngine(), SuffixEngine(strict=True)], ids=lambda each: each.name)
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
        Pieces("things").run([1, 2, 3], 3, full)


def test_the_size_that_fitted_is_kept_for_a_while() -> None:
    pieces, seen, room = Pieces("things"), [], 2

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
    pieces = Pieces("things")

    def run(weight: int) -> list[int]:
        def fill(piece: Any) -> int:
            if len(piece) * weight > 12:
                raise torch.OutOfMemoryError("full")
            return len(piece)

        return pieces.run(range(12), 12, fill, weight=weight)

    assert [run(weight) for weight in (1, 4, 1)] == [[12], [3, 3, 3, 3], [12]]
    with pytest.raises(torch.OutOfMemoryError):
        pieces.run(range(2), 2, lambda piece: run(13), halve=False)


def test_one_shortage_with_several_prompts_leaves_the_knockouts_side_by_side(tiny_llava: str) -> None:
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
    backbone: Backbone, batch: MultimodalBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = sweep(PAPER, 1, 5)
    prompts: list[int] = []
    monkeypatch.setattr(
        CleanRun,
        "of",
        lambda backbone, some, tail, of=CleanRun.of: prompts.append(len(some)) or of(backbone, some, tail),  # type: ignore[func-returns-value]
    )

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
    plan = Plan.of(Llama7B, length, torch.float16, gib * 2**30)
    prompts = plan.prompts(questions)
    kept = 32 * length * 3 * 4096 * 2  # keys, values, residuals of a prompt

    assert prompts * kept < gib * 2**29
    assert prompts == questions or (prompts + 1) * 2 * kept > gib * 2**29
    for start in (611, 643):
        rows = (length - start) * plan.side_by_side(start, prompts)
        passing = prompts * rows * ((8 * 4096 + 3 * 11008) * 2 + 32 * (start + rows) * 4)
        assert 0 < prompts * kept + passing < gib * 2**30
        assert rows >= length - start


def test_what_a_job_may_use_is_the_least_that_its_groups_leave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, gib = torch.device("cpu"), 2**30
    for group, limit, used in (("", 64, 8), ("job", 9, 5), ("job/step", None, 5)):
        folder = tmp_path / group
        folder.mkdir(exist_ok=True)
        (folder / "memory.max").write_text("max\n" if limit is None else f"{limit * gib}\n")
        (folder / "memory.current").write_text(f"{used * gib}\n")
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUP", own)
    monkeypatch.setattr(memory, "_free_pages", lambda: 32 * gib)

    assert free_bytes(device) == 4 * gib
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_bytes(device) == 2 * gib


@ENGINES
def test_what_can_not_be_run_is_refused(backbone: Backbone, batch: MultimodalBatch, engine: Any) -> None:
    spans = batch.spans.masks
    blind = TokenSpans({**spans, Segment.SYSTEM: batch.attention_mask.bool()})
    lacking = TokenSpans({Segment.LAST: spans[Segment.LAST]})
    chosen = choose_engine(engine)
    for changed, cases, message in (
        (batch.spans, [], "nothing to block"),
        (batch.spans, [Case(PAPER[0], Window(3, 2, 9))], "the layers 0 to 3"),
        (batch.spans, [Case(Block.parse("image->last[7]"), everywhere())], "the heads 0 to 3"),
        (blind, [Case(Block.parse("system->last"), everywhere())], "system->last hides everything .* sample 's0'"),
        (lacking, [Case(PAPER[0], everywhere())], "does not say where 'question' is"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            chosen.run(backbone, replace(batch, spans=changed), cases)


def test_a_model_in_train_mode_and_no_memory_are_refused(tiny_llava: str, batch: MultimodalBatch) -> None:
    backbone = make_backbone(tiny_llava)
    backbone.model.train()

    with pytest.raises(ConfigError, match="in train mode"):
        choose_engine().run(backbone, batch, CASES)
    with pytest.raises(ConfigError, match="A memory budget of 0 bytes"):
        choose_engine(memory=0)
