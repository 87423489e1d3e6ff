"""An engine gives no result that it has no right to: refusals and fallbacks."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mllm.analysis import (
    Block,
    Case,
    ReferenceEngine,
    SuffixEngine,
    Window,
    choose_engine,
)
from lightning_mllm.batches import MultimodalBatch, TokenSpans
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.types import Segment
from tests.support.decoders import PAPER, apart, everywhere, make_backbone, make_batch

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
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_attention_that_ignores_the_mask_is_found_out(
    tiny_llava: str, engine: Any, attention: str, dtype: torch.dtype
) -> None:
    blind = make_backbone(tiny_llava, attention, dtype)

    with pytest.raises(ConfigError, match=rf"attention '{attention}' ignores (the mask|masks)"):
        choose_engine(engine).run(blind, make_batch(tiny_llava, numbers=(0,)), CASES)


@ENGINES
def test_attention_that_takes_no_dense_mask_is_refused(
    tiny_llava: str, batch: MultimodalBatch, engine: Any
) -> None:
    backbone = make_backbone(tiny_llava)
    backbone.decoder.config._attn_implementation_internal = "flash_attention_2"  # type: ignore[union-attr]

    with pytest.raises(ConfigError, match="'flash_attention_2' ignores or rejects"):
        choose_engine(engine).run(backbone, batch, CASES)


def test_another_kind_of_attention_is_checked_anew(tiny_llava: str, batch: MultimodalBatch) -> None:
    backbone, engine, one = (
        make_backbone(tiny_llava),
        ReferenceEngine(),
        make_batch(tiny_llava, numbers=(0,)),
    )
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
        (of_a_prefix_lm, "its layers see or compute something that is not known"),
        (with_features_between_layers, "its layers see or compute something that is not known"),
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
    assert (
        reason in caplog.text
        and "The reference engine, which is slower, does the work instead" in caplog.text
    )
    with pytest.raises(
        ConfigError, match=rf"can't be used with this Llava.*{reason}.*engine=reference"
    ):
        choose_engine("suffix").run(backbone, batch, CASES)


def test_the_clean_run_is_replayed_once_for_each_model(
    backbone: Backbone, batch: MultimodalBatch
) -> None:
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

    assert counts == [
        7,
        2,
        2,
    ]  # clean run and rows; before, a clean run, two replays, and twice two rows


@ENGINES
def test_what_can_not_be_run_is_refused(
    backbone: Backbone, batch: MultimodalBatch, engine: Any
) -> None:
    spans = batch.spans.masks
    blind = TokenSpans({**spans, Segment.SYSTEM: batch.attention_mask.bool()})
    lacking = TokenSpans({Segment.LAST: spans[Segment.LAST]})
    chosen = choose_engine(engine)
    for changed, cases, message in (
        (batch.spans, [], "nothing to block"),
        (batch.spans, [Case(PAPER[0], Window(3, 2, 9))], "the layers 0 to 3"),
        (batch.spans, [Case(Block.parse("image->last[7]"), everywhere())], "the heads 0 to 3"),
        (
            blind,
            [Case(Block.parse("system->last"), everywhere())],
            "system->last hides everything .* sample 's0'",
        ),
        (lacking, [Case(PAPER[0], everywhere())], "does not say where 'question' is"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            chosen.run(backbone, replace(batch, spans=changed), cases)


def test_a_model_in_train_mode_and_no_memory_are_refused(
    tiny_llava: str, batch: MultimodalBatch
) -> None:
    backbone = make_backbone(tiny_llava)
    backbone.model.train()

    with pytest.raises(ConfigError, match="in train mode"):
        choose_engine().run(backbone, batch, CASES)
    with pytest.raises(ConfigError, match="A memory budget of 0 bytes"):
        choose_engine(memory=0)
