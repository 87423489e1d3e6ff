"""What a training needs of each device's memory, by part, from the config of a model alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rich.table import Table
from torch import nn
from torch.optim import AdamW
from transformers import AutoModelForImageTextToText, PretrainedConfig

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.adapted import AdaptedModel
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.fit_checks import check_fit_trainable
from lightning_mllm.models.freeze import FreezePolicy
from lightning_mllm.models.loading import AttentionImplementation
from lightning_mllm.models.memory.fake_step import StepShape, measure_fake_step
from lightning_mllm.models.memory.optimizer_memory import measure_optimizer
from lightning_mllm.models.optimisation.optimizer import OptimizerFactory
from lightning_mllm.models.optimisation.rounding import TrainedDType, check_trained_dtype
from lightning_mllm.models.optimisation.schedule import LearningRates, scheduled_parameter_groups
from lightning_mllm.models.optimisation.sharded import check_sharded_optimizer
from lightning_mllm.models.quantization import (
    BYTES_PER_WEIGHT,
    Quantize,
    StoredWeight,
    kind_of_quantized_checkpoint,
    put_stored_weights,
)
from lightning_mllm.models.quantizing import check_quantize_option, find_quantized_linears
from lightning_mllm.models.reach import make_fixed_picture

MemoryStrategy = Literal["one", "ddp", "fsdp2"]

GIB = 2**30
_AT_ONCE = 2  # layers that FSDP2 holds whole: one computes, the next is fetched


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """What is trained and how, as far as memory depends on it.

    Attributes:
        policy: What is trained.
        optimizer: Makes the optimiser.
        dtype: Dtype of the frozen weights.
        trained_dtype: Dtype of the trained weights.
        micro_batch_size: Samples that go through the model at once in each process.
        tokens: Tokens of the longest sample, visual ones included.
        answer_tokens: How many tokens of a sample are trained on.
        images: Pictures of a sample.
        gradient_checkpointing: Whether activations are recomputed.
        attention: Attention implementation.
        quantize: To what the LLM's frozen linear layers are quantised.
        strategy: `ddp` holds the whole model in each process, `fsdp2` shares it among them.
        whole_evaluation: Whether `fsdp2` holds the whole model in each process to evaluate it.
        processes: How many processes train, each on its device.
        device_type: Type of the devices.
    """

    policy: FreezePolicy
    optimizer: OptimizerFactory = lambda params, lr: AdamW(params, lr=lr)
    dtype: torch.dtype = torch.bfloat16
    trained_dtype: TrainedDType = "float32"
    micro_batch_size: int = 1
    tokens: int = 640
    answer_tokens: int = 64
    images: int = 1
    gradient_checkpointing: bool = False
    attention: AttentionImplementation = "sdpa"
    quantize: Quantize | None = None
    strategy: MemoryStrategy = "one"
    whole_evaluation: bool = True
    processes: int = 1
    device_type: str = "cuda"


@dataclass(frozen=True)
class MemoryEstimate:
    """GiB on each device, by part, when a training step needs most.

    Not in it: the CUDA context with its libraries (1 to 2 GiB), what the allocator loses to
    fragments, and the keys and values of an evaluation.

    Attributes:
        weights: Weights, frozen and trained.
        gradients: Gradients of the trained weights.
        states: States of the optimiser.
        activations: Activations and temporary tensors.
        exchange: What processes exchange: DDP's copy of the gradients, or the layers that FSDP2
            holds whole at once.
        evaluation: What an evaluation under FSDP2 needs in all if it holds the model whole; else
            0.
        notes: What else is to be known of the numbers.
    """

    weights: float
    gradients: float
    states: float
    activations: float
    exchange: float = 0.0
    evaluation: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def training(self) -> float:
        """GiB that training needs in all."""
        return self.weights + self.gradients + self.states + self.activations + self.exchange

    @property
    def total(self) -> float:
        """GiB that are needed at most."""
        return max(self.training, self.evaluation)

    def rows(self) -> list[tuple[str, float]]:
        """Return (part, GiB), and then the total; parts that need nothing are left out."""
        parts = [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimiser states", self.states),
            ("activations", self.activations),
            ("exchange between processes", self.exchange),
            ("evaluation, in place of all above", self.evaluation),
        ]
        return [*((name, size) for name, size in parts if size), ("total", self.total)]

    def __rich__(self) -> Table:
        table = Table("memory of each device", caption=" ".join(self.notes) or None)
        table.add_column("GiB", justify="right")
        for name, size in self.rows():
            if name == "total":
                table.add_section()
            table.add_row(name, f"{size:.2f}")
        return table


def estimate_memory(config: PretrainedConfig, need: MemoryNeed) -> MemoryEstimate:
    """Return what a training needs of each device's memory; takes seconds, and no memory itself.

    Weights and gradients are counted on a model without data. The states of the optimiser are
    measured on small weights. Activations are measured with fake tensors: the model's own forward
    and backward run, under the policy, autocast and gradient checkpointing. What processes exchange
    and quantised weights are arithmetic.

    Args:
        config: The config of the checkpoint, e.g. of `transformers.AutoConfig.from_pretrained`.
        need: What is trained and how.

    Raises:
        ConfigError: The model could not be trained so, or its checkpoint is quantised already.
    """
    sharded = need.strategy == "fsdp2"
    _check_need(config, need, sharded=sharded)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=need.dtype, attn_implementation=need.attention
        )
    backbone, saved = Backbone(model), 0
    if need.quantize is not None:
        saved = _mark_quantized(backbone, need.quantize)
    adapted = AdaptedModel(backbone, need.policy, need.dtype, need.trained_dtype)
    check_fit_trainable(adapted, LearningRates())
    if need.gradient_checkpointing:
        adapted.enable_gradient_checkpointing()
    trained = [each for each in model.parameters() if each.requires_grad]
    weights, gradients = _bytes_of(model.parameters()) - saved, _bytes_of(trained)
    groups = scheduled_parameter_groups(adapted.backbone, LearningRates())
    optimizer = measure_optimizer(need.optimizer, groups, need.device_type)
    at_once = _gathered_bytes(adapted.backbone) if sharded else 0
    notes = tuple(_find_notes(adapted.backbone, need))
    shape = StepShape(need.micro_batch_size, need.tokens, need.answer_tokens, need.images)
    moving = measure_fake_step(adapted, shape, keeps_gradients=not sharded)
    share = need.processes if sharded else 1
    exchange = at_once if need.processes > 1 else 0
    if need.strategy == "ddp" and need.processes > 1:
        exchange = gradients  # its buckets
    # besides weights and states: in the backward pass, or in the step of the optimiser
    backward = moving + (gradients / share if sharded else 0)
    most = max(backward, (gradients + optimizer.step) / share)
    whole = sharded and need.whole_evaluation
    evaluation = (weights + optimizer.states / share) if whole else 0
    return MemoryEstimate(
        weights / share / GIB,
        gradients / share / GIB,
        optimizer.states / share / GIB,
        (most - gradients / share) / GIB,
        exchange / GIB,
        evaluation / GIB,
        notes,
    )


def _check_need(config: PretrainedConfig, need: MemoryNeed, *, sharded: bool) -> None:
    """Refuse what a fit would refuse, and what can't be estimated."""
    check_trained_dtype(need.trained_dtype, need.dtype, need.optimizer)
    if sharded:
        check_sharded_optimizer(need.optimizer)
    check_quantize_option(need.quantize, sharded=sharded, compiled=False, placed=False)
    if (kind := kind_of_quantized_checkpoint(config)) is not None:
        raise ConfigError(
            f"The checkpoint is quantised already ({kind}), and what such a one needs is not "
            "estimated. Ask for the checkpoint that it was made from, with model.quantize."
        )


def _bytes_of(parameters: Any) -> int:
    return sum(each.numel() * each.itemsize for each in parameters)


def _mark_quantized(backbone: Backbone, quantize: Quantize) -> int:
    """Let a policy know what is quantised; return how many bytes the weights need less then."""
    linears, nothing = find_quantized_linears(backbone, quantize), torch.empty(0)
    stored = {
        f"{name}.weight": StoredWeight(layer.weight.shape, nothing, quantize)
        for name, layer in linears.items()
    }
    put_stored_weights(backbone.model, stored)
    saved = 0.0
    for layer in linears.values():
        saved += layer.weight.numel() * (layer.weight.itemsize - BYTES_PER_WEIGHT[quantize])
    return round(saved)


def _gathered_bytes(backbone: Backbone) -> int:
    """Return what FSDP2 holds whole at once: two layers, and all that lies in no layer."""
    layers: list[int] = []
    for module in backbone.decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            layers = [_bytes_of(layer.parameters()) for layer in module]
            break
    return _bytes_of(backbone.model.parameters()) - sum(layers) + _AT_ONCE * max(layers, default=0)


def _find_notes(backbone: Backbone, need: MemoryNeed) -> Iterator[str]:
    fixed = make_fixed_picture(backbone.vision_path) is not None
    if need.images and not fixed and backbone.trains_vision:
        yield "Activations of the trained tower are not counted: its pictures have no fixed size."
