"""`lightning fit --dry-run`: says what a fit would need of memory, and trains nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import torch

from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.longest import LongestSample, find_longest_sample
from lightning_mllm.data.loading.sampler import check_sampler_batches
from lightning_mllm.fsdp2_strategy import FSDP2Strategy
from lightning_mllm.models.adapted import adapted_dtype
from lightning_mllm.models.loading import load_config
from lightning_mllm.models.memory.estimate import (
    GIB,
    MemoryEstimate,
    MemoryNeed,
    MemoryStrategy,
    estimate_memory,
)
from lightning_mllm.models.memory.remedies import find_remedies
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.placement import refuse_placed_fit
from lightning_mllm.models.quantizing import check_quantize_option
from lightning_mllm.progress import console
from lightning_mllm.trainer_options import SHARDED

HELP = (
    "Check config and data, print what the fit needs of memory, by part, and whether it fits the "
    "device found here. No weights are loaded, nothing is trained or written. Exit status 1 if it "
    "does not fit."
)
_CONTEXT = 2.0  # GiB that CUDA and its libraries take
_CARDS = (24, 40, 80)  # GB


def dry_run_fit(
    model: MLLMModule, data: MLLMDataModule, trainer_options: Mapping[str, Any]
) -> None:
    """Check the data and show what the fit needs; exit with status 1 if it does not fit.

    Args:
        model: The module, whose model is not loaded.
        data: The data.
        trainer_options: Options of the trainer.

    Raises:
        UserError: The fit would be refused.
    """
    device_type = _find_device_type(trainer_options.get("accelerator"))
    processes = _count_devices(trainer_options.get("devices"), device_type)
    processes *= int(trainer_options.get("num_nodes") or 1)
    sharded = _find_sharding(trainer_options.get("strategy"))
    if model.device_map is not None:
        refuse_placed_fit()
    check_quantize_option(
        model.quantize, sharded=sharded is not None, compiled=model.compile_model, placed=False
    )
    check_sampler_batches(processes, batch_size=data.batch_size)
    data.setup("fit")
    longest = find_longest_sample(data.samples["train"], data.collator)
    strategy: MemoryStrategy = "one"
    if processes > 1:
        strategy = "ddp" if sharded is None else "fsdp2"
    need = MemoryNeed(
        policy=model.policy,
        optimizer=model.optimizer,
        dtype=adapted_dtype(model.dtype_option, device_type),
        trained_dtype=model.trained_dtype,
        micro_batch_size=_find_micro_batch(model, data, processes),
        tokens=longest.tokens,
        answer_tokens=longest.answer_tokens,
        images=longest.images,
        gradient_checkpointing=model.gradient_checkpointing,
        attention=model.attention,
        quantize=model.quantize,
        strategy=strategy,
        whole_evaluation=sharded is None or sharded.evaluation == "whole",
        processes=processes,
        device_type=device_type,
    )
    source = model.source
    config = load_config(
        source.checkpoint, revision=source.revision, trust_remote_code=source.trust_remote_code
    )
    estimate = estimate_memory(config, need)
    console.print(estimate)
    console.print(_describe_need(need, longest), soft_wrap=True)
    _judge(config, need, estimate)


def _describe_need(need: MemoryNeed, longest: LongestSample) -> str:
    dtype = str(need.dtype).removeprefix("torch.")
    quantized = f" (layers of the LLM in {need.quantize})" if need.quantize else ""
    return (
        f"{need.policy} on {need.processes} {need.device_type} device(s); the longest of "
        f"{longest.looked_at:,} training samples has {need.tokens:,} tokens, "
        f"{need.answer_tokens:,} of them trained on; micro-batches of {need.micro_batch_size}; "
        f"frozen weights in {dtype}{quantized}, trained ones in {need.trained_dtype}."
    )


def _judge(config: Any, need: MemoryNeed, estimate: MemoryEstimate) -> None:
    """Say whether it fits, and if not, what to change."""
    has = _find_memory(need.device_type)
    if has is None:
        _judge_by_cards(config, need, estimate)
        return
    spare = _CONTEXT if need.device_type == "cuda" else 0.0
    taken = f", of which CUDA takes up to {spare:g}" if spare else ""
    here = f"{has:.1f} GiB are here{taken}."
    if estimate.total + spare <= has:
        console.print(f"It fits: {here}")
        return
    console.print(f"It does not fit: {here}")
    _show_remedies(config, need, estimate, has - spare)
    sys.exit(1)


def _judge_by_cards(config: Any, need: MemoryNeed, estimate: MemoryEstimate) -> None:
    """Say which card it fits, and if none, what to change for the largest."""
    cards = {card: card * 1e9 / GIB - _CONTEXT for card in _CARDS}
    fitting = [card for card, has in cards.items() if estimate.total <= has]
    fits = f"a card of {fitting[0]} GB" if fitting else f"no card of {_CARDS[-1]} GB"
    console.print(
        f"There is no GPU here to compare with. It fits {fits}. (CUDA itself takes up to "
        f"{_CONTEXT:g} GiB, which is counted.)",
        soft_wrap=True,
    )
    if not fitting:
        _show_remedies(config, need, estimate, cards[_CARDS[-1]])


def _show_remedies(config: Any, need: MemoryNeed, estimate: MemoryEstimate, limit: float) -> None:
    console.print("What to change, one after the other:")
    for remedy in find_remedies(config, need, estimate, limit):
        console.print(f"  {remedy.change}: {remedy.estimate.total:.1f} GiB", soft_wrap=True)
    console.print("A policy that trains less needs less, e.g. configs/policy/lora.yaml.")


def _find_sharding(strategy: Any) -> FSDP2Strategy | None:
    if strategy == SHARDED:
        return FSDP2Strategy()
    return strategy if isinstance(strategy, FSDP2Strategy) else None


def _find_micro_batch(model: MLLMModule, data: MLLMDataModule, processes: int) -> int:
    own = -(-min(data.batch_size, len(data.samples["train"])) // processes)
    return min(model.micro_batch_size or own, own)


def _find_device_type(accelerator: Any) -> str:
    if accelerator in ("cpu", "mps", "cuda"):
        return str(accelerator)
    if accelerator == "gpu" or torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _count_devices(devices: Any, device_type: str) -> int:
    """Return how many devices an option of the trainer means."""
    if isinstance(devices, list | tuple):
        return len(devices)
    text = str(devices)
    if "," in text:
        return len([each for each in text.split(",") if each.strip()])
    if text.isdecimal():
        return int(text)
    return max(1, torch.cuda.device_count()) if device_type == "cuda" else 1


def _find_memory(device_type: str) -> float | None:
    """Return the GiB of the smallest device; None if it is not known."""
    if device_type == "cuda":
        count = torch.cuda.device_count()
        sizes = [torch.cuda.get_device_properties(k).total_memory for k in range(count)]
        return min(sizes) / GIB if sizes else None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
