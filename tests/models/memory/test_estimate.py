"""What `estimate_memory` says, held against measurements and real steps of small models."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from lightning_mllm.batches import MultimodalBatch, TokenSpans
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.adapted import AdaptedModel
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.freeze import (
    Everything,
    FreezePolicy,
    LastLayers,
    Lora,
    ProjectorAndLLM,
    ProjectorOnly,
    ZeroShot,
)
from lightning_mllm.models.memory.estimate import (
    GIB,
    MemoryEstimate,
    MemoryNeed,
    estimate_memory,
)
from lightning_mllm.models.memory.remedies import find_remedies
from lightning_mllm.models.memory.storages import StorageCounter
from lightning_mllm.models.quantization import BYTES_PER_WEIGHT
from lightning_mllm.types import IGNORE_INDEX
from tests.support.llava_configs import LlavaSize, llava_config
from tests.support.memory_page import memory_tables, rounding, rounding_8_bit, tables_on_page

CHECKPOINTED: dict[str, Any] = {"gradient_checkpointing": True}
PROJ, E2E = {"policy": ProjectorOnly()}, {"policy": ProjectorAndLLM()}
SMALL: dict[str, Any] = {"trained_dtype": "bfloat16", "optimizer": rounding}
# measured with fake tensors through the whole training step, on one device: size, options, and GiB
# of weights, of gradients and states, and of all
MEASURED: dict[str, tuple[LlavaSize, dict[str, Any], tuple[float | None, float | None, float]]] = {
    "FT-Proj": ("7B", {**PROJ, **CHECKPOINTED}, (13.2, 0.24, 14.1)),
    "FT-Proj of 13B": ("13B", {**PROJ, **CHECKPOINTED}, (None, None, 25.6)),
    "FT-Proj, 16 samples": (
        "7B",
        {**PROJ, **CHECKPOINTED, "micro_batch_size": 16},
        (13.2, 0.24, 17.9),
    ),
    "FT-Proj, not checkpointed": ("7B", PROJ, (13.2, 0.24, 16.0)),
    "FT-Proj, 4 samples, not checkpointed": (
        "7B",
        {**PROJ, "micro_batch_size": 4},
        (13.2, 0.24, 23.8),
    ),
    "FT-E2E": ("7B", {**E2E, **CHECKPOINTED}, (25.7, 77.0, 102.8)),
    "FT-E2E, 16 samples": (
        "7B",
        {**E2E, **CHECKPOINTED, "micro_batch_size": 16},
        (25.7, 77.0, 104.0),
    ),
    "FT-E2E of 13B": ("13B", {**E2E, **CHECKPOINTED}, (None, None, 196.9)),
    "FT-E2E in bfloat16": ("7B", {**E2E, **CHECKPOINTED, **SMALL}, (13.2, 38.5, 51.7)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MEASURED)
def test_each_part_is_within_a_tenth_of_what_was_measured(case: str) -> None:
    size, options, (weights, kept, total) = MEASURED[case]

    found = estimate_memory(llava_config(size), MemoryNeed(**options, device_type="cpu"))

    assert weights is None or found.weights == pytest.approx(weights, rel=0.1)
    assert kept is None or found.gradients + found.states == pytest.approx(kept, rel=0.1)
    assert found.total == pytest.approx(total, rel=0.1)


MORE_CASES = (
    (ProjectorOnly(), False),
    (ProjectorAndLLM(), False),
    (ProjectorAndLLM(), True),
    (Lora(), True),
    (Everything(), True),
    (Everything(), False),
)


def _small_config() -> Any:
    config: Any = llava_config("7B")
    config.text_config.num_hidden_layers = 2
    config.text_config.hidden_size, config.text_config.intermediate_size = 128, 256
    config.text_config.num_attention_heads, config.text_config.num_key_value_heads = 4, 4
    config.text_config.head_dim = 32
    config.text_config.vocab_size, config.image_token_id = 512, 5
    config.vision_config.num_hidden_layers = 2
    config.vision_config.image_size = 56
    return config


@pytest.mark.parametrize(
    ("policy", "checkpointing"),
    [
        (ProjectorOnly(), True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_CASES),
    ],
)
def test_a_real_step_of_a_small_model_needs_what_is_estimated(
    policy: FreezePolicy, checkpointing: bool
) -> None:
    config, tokens, answer, samples = _small_config(), 64, 40, 4
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    adapted = AdaptedModel(Backbone(model), policy, torch.bfloat16)
    if checkpointing:
        adapted.enable_gradient_checkpointing()
    adapted.set_train_modes()
    batch = _batch(config, samples, tokens, answer)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    counter = StorageCounter()
    with counter:
        counter.add([*model.parameters(), *model.buffers()])
        for _ in range(2):
            optimizer.zero_grad()
            adapted.loss(batch).backward()
            optimizer.step()

    need = MemoryNeed(
        policy=policy,
        micro_batch_size=samples,
        tokens=tokens,
        answer_tokens=answer,
        gradient_checkpointing=checkpointing,
        device_type="cpu",
    )
    assert estimate_memory(config, need).total * GIB == pytest.approx(counter.peak, rel=0.1)


def _batch(config: Any, samples: int, tokens: int, answer: int) -> MultimodalBatch:
    ids = torch.ones(samples, tokens, dtype=torch.long)
    ids[:, :16] = config.image_token_id  # (56 / 14) ** 2 visual tokens
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:, -answer:] = 1
    image = {"pixel_values": torch.zeros(1, 3, 56, 56)}
    return MultimodalBatch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=labels,
        spans=TokenSpans({}),
        targets=torch.full((samples,), -1),
        sample_ids=("x",) * samples,
        pictures=("x",) * samples,
        kinds=(None,) * samples,
        answers=(None,) * samples,
        images=(image,) * samples,
        image_counts=(1,) * samples,
        pad_id=0,
        end_id=2,
        steps=torch.ones_like(ids),
    )


def _estimate(**options: Any) -> MemoryEstimate:
    given = {"policy": ProjectorAndLLM(), "tokens": 64, "answer_tokens": 40, **options}
    return estimate_memory(_small_config(), MemoryNeed(**given))


def test_ddp_needs_the_gradients_twice_and_fsdp2_shares_what_it_holds() -> None:
    one, ddp = _estimate(), _estimate(strategy="ddp", processes=4)
    fsdp = _estimate(strategy="fsdp2", processes=4)

    assert ddp.total == pytest.approx(one.total + one.gradients)
    for part in ("weights", "gradients", "states"):
        assert getattr(fsdp, part) == pytest.approx(getattr(one, part) / 4)
    assert fsdp.evaluation == pytest.approx(one.weights + one.states / 4)
    assert _estimate(strategy="fsdp2", processes=4, whole_evaluation=False).evaluation == 0


@pytest.mark.slow
def test_bfloat16_halves_weights_and_gradients_and_8_bit_states_are_a_quarter() -> None:
    plain, small = _estimate(), _estimate(trained_dtype="bfloat16", optimizer=rounding_8_bit)

    assert small.gradients == pytest.approx(plain.gradients / 2)
    assert small.states == pytest.approx(plain.states / 4, rel=0.05)


def test_quantised_weights_are_those_of_the_frozen_llm() -> None:
    config = _small_config().text_config
    plain, nf4 = (_estimate(policy=Lora(), quantize=each) for each in (None, "nf4"))

    width, inner = config.hidden_size, config.intermediate_size
    linears = config.num_hidden_layers * (4 * width * width + 3 * width * inner)
    saved = linears * (2 - BYTES_PER_WEIGHT["nf4"])
    assert (plain.weights - nf4.weights) * GIB == pytest.approx(saved, rel=1e-3)


def test_what_a_fit_refuses_to_quantise_or_to_shard_is_refused() -> None:
    with pytest.raises(ConfigError, match="layers that are quantised"):
        _estimate(quantize="nf4")
    with pytest.raises(ConfigError, match="nf4 can't be sharded"):
        _estimate(policy=ProjectorOnly(), quantize="nf4", strategy="fsdp2", processes=2)
    with pytest.raises(ConfigError, match="AdamW8bit keeps its states in blocks"):
        _estimate(optimizer=rounding_8_bit, strategy="fsdp2", processes=2)
    config = _small_config()
    config.quantization_config = {"load_in_8bit": True}
    with pytest.raises(ConfigError, match=r"quantised already \(int8\)"):
        estimate_memory(config, MemoryNeed(policy=ProjectorOnly()))


def test_what_could_not_be_trained_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not round"):
        _estimate(trained_dtype="bfloat16")
    with pytest.raises(ConfigError, match="nothing trainable"):
        _estimate(policy=ZeroShot())


@pytest.mark.slow
def test_remedies_are_tried_until_it_fits() -> None:
    config = _small_config()
    need = MemoryNeed(policy=ProjectorAndLLM(), micro_batch_size=8, tokens=64, answer_tokens=40)
    now = estimate_memory(config, need)

    found = find_remedies(config, need, now, 0.0)

    totals = [now.total, *(each.estimate.total for each in found)]
    assert totals == sorted(totals, reverse=True)
    assert any("bfloat16_adamw_8bit" in each.change for each in found)
    assert len(find_remedies(config, need, now, totals[1])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("policy", [LastLayers(1), ProjectorOnly()], ids=str)
def test_no_remedy_is_one_that_a_fit_would_refuse(policy: FreezePolicy) -> None:
    config = _small_config()
    config.text_config.intermediate_size = 16_384  # else there is little to quantise
    need = MemoryNeed(policy=policy, tokens=64, answer_tokens=40, gradient_checkpointing=True)

    changes = [
        each.change for each in find_remedies(config, need, estimate_memory(config, need), 0)
    ]

    assert ("--model.quantize nf4" in changes) == (policy == ProjectorOnly())
    assert not any("quantize" in first and "fsdp2" in second for first, second in pairwise(changes))


@pytest.mark.slow
def test_the_page_has_the_tables_that_are_estimated() -> None:
    assert memory_tables() == tables_on_page()
