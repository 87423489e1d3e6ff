"""An MLLM under a freeze policy: what is trained, in which precision and in which mode.

Plain torch, without Lightning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.checkpoint import load_projector
from lightning_mllm.models.freeze import FreezePolicy
from lightning_mllm.models.freeze_report import FreezeReport
from lightning_mllm.models.holding import Holding
from lightning_mllm.models.loading import AttentionImplementation
from lightning_mllm.models.loss import answer_loss, keep_in_graph, sharded_answer_loss
from lightning_mllm.models.optimisation.rounding import TrainedDType
from lightning_mllm.models.placement import find_offloaded
from lightning_mllm.models.quantization import Quantize, check_quantization_available
from lightning_mllm.models.quantizing import plan_quantization
from lightning_mllm.models.shard_values import cast_parameter, copy_values, values_to_write
from lightning_mllm.models.sharding import Sharding, is_sharded
from lightning_mllm.models.shards import Shards
from lightning_mllm.models.source import Source
from lightning_mllm.types import IGNORE_INDEX

DType = Literal["auto", "float32", "bfloat16", "float16"]
ModelEdit = Callable[[Backbone, MultimodalBatch], AbstractContextManager[None]]


class AdaptedModel:
    """A loaded model and what a freeze policy made of it.

    Frozen weights have the given dtype, or are quantised. Trained weights are float32, so that
    small updates are not rounded away, or bfloat16 beside frozen ones of that dtype (see
    `check_trained_dtype`). With a 16-bit dtype the forward runs under autocast.

    Attributes:
        backbone: The model.
        report: What the policy made trainable.
        dtype: Dtype of the frozen weights.
        edit: Makes the context that changes the model's computations while it runs on a
            (micro-)batch; None if nothing is changed.
        shards: The shards of a model that is divided among processes; None for a whole model.
    """

    def __init__(
        self,
        backbone: Backbone,
        policy: FreezePolicy,
        dtype: torch.dtype,
        trained_dtype: TrainedDType = "float32",
        sharding: Sharding | None = None,
    ) -> None:
        self.backbone = backbone
        self.dtype = dtype
        self.edit: ModelEdit | None = None
        self._reload: Callable[..., AdaptedModel] | None = None
        self.report: FreezeReport = policy.apply(backbone)
        _check_trained_at_hand(backbone, self.report)
        # a forward in float32 can't have weights in bfloat16; a fit refuses that
        keeps_bfloat16 = trained_dtype == "bfloat16" and dtype == torch.bfloat16
        trained = dtype if keeps_bfloat16 else torch.float32
        if Part.VISION in self.report.trainable_parts:
            backbone.vision_tower.to(trained)  # norms in mixed precision would not run on the CPU
        for _, parameter in backbone.parameters():
            if parameter.requires_grad:
                cast_parameter(parameter, trained)
        if not backbone.family.mixes_dtypes:
            _share_dtype(backbone.vision_tower, backbone.model.get_input_embeddings())
        self.shards: Shards | None = None
        if sharding is not None and is_sharded(backbone.model):
            self.shards = Shards(backbone.model, sharding)

    @classmethod
    def load(
        cls,
        source: Source,
        policy: FreezePolicy,
        *,
        dtype: torch.dtype,
        trained_dtype: TrainedDType = "float32",
        attention: AttentionImplementation = "sdpa",
        projector: Path | None = None,
        quantize: Quantize | None = None,
        holding: Holding = Holding(),
    ) -> AdaptedModel:
        """Load a checkpoint and apply a policy to it.

        Args:
            source: The checkpoint.
            policy: What is trained.
            dtype: Dtype of the frozen weights.
            trained_dtype: Dtype of the trained weights.
            attention: Attention implementation of transformers.
            projector: A `projector.safetensors` that replaces the checkpoint's projection.
            quantize: How the linear layers of the LLM are quantised; by default they are not.
            holding: How else the model is held; by default whole, in the CPU's memory.

        Raises:
            CheckpointError: The checkpoint or the projector is missing, damaged, or does not fit.
            ConfigError: The policy does not fit the model, or a package is not installed.
        """
        options: dict[str, Any] = {"attention": attention, **source.options}
        if quantize is not None:
            check_quantization_available(f"model.quantize {quantize}")
            plain = Backbone.from_pretrained(source.checkpoint, dtype="auto", **options)
            plan = plan_quantization(plain, quantize, policy, dtype)
            holding = replace(holding, quantization=plan)
            del plain
        backbone = Backbone.from_pretrained(
            source.checkpoint, dtype=dtype, holding=holding, **options
        )
        if projector is not None:
            load_projector(backbone, projector)
        adapted = cls(backbone, policy, dtype, trained_dtype, holding.sharding)
        own: Any = {
            "dtype": dtype,
            "trained_dtype": trained_dtype,
            "attention": attention,
            "projector": projector,
        }
        adapted._reload = partial(cls.load, source, policy, **own)
        return adapted

    def unquantized(self) -> AdaptedModel:
        """Return the model without quantised weights, and with what was trained: itself, or anew.

        Its fingerprint is that of the checkpoint that it comes from.

        Raises:
            ConfigError: The model is quantised, and does not come from `load`.
        """
        if self.backbone.quantized is None:
            return self
        if self._reload is None:
            raise ConfigError(
                "The LLM's weights are quantised, and where they come from is not known. Load the "
                "model with AdaptedModel.load or MLLMModule."
            )
        plain = self._reload(holding=Holding(dequantize=True))
        plain.load_trained_state(self.trained_state())
        return plain

    @contextmanager
    def autocast(self, device_type: str, *, keeps_casts: bool = True) -> Iterator[None]:
        """Make the context in which the model runs: 16-bit weights need autocast.

        In it the processes of a sharded model may run unequal numbers of forwards; after a loop in
        which they enter it unequally often, call `end_regions`.

        Args:
            device_type: Where the model is.
            keeps_casts: Whether 16-bit copies of float32 weights are kept until the context ends.
                Generation uses them again for each token; a training step uses each once.
        """
        dtype = self.dtype if self.low_precision else torch.bfloat16
        region = nullcontext() if self.shards is None else self.shards.region()
        # 16-bit copies of weights would outlive the weights of a layer that is given back
        keeps = keeps_casts and (self.shards is None or self.shards.are_whole)
        autocast = torch.autocast(device_type, dtype, self.low_precision, cache_enabled=keeps)
        with region, autocast:
            yield

    def end_regions(self) -> None:
        """Wait until no process enters `autocast` any more; of a whole model none does."""
        if self.shards is not None:
            self.shards.end_regions()

    def edited(self, batch: MultimodalBatch) -> AbstractContextManager[None]:
        """Return the context in which the model runs on a batch; enter it within `autocast`."""
        if self.edit is None or not len(batch):
            return nullcontext()
        return self.edit(self.backbone, batch)

    def loss(self, batch: MultimodalBatch) -> Tensor:
        """Return `AnswerLoss.total` of a (micro-)batch, under autocast and under the edit."""
        device_type = batch.input_ids.device.type
        with self.autocast(device_type, keeps_casts=False), self.edited(batch):
            if self.shards is not None and not self.shards.are_gathered:
                return self.shards.run(sharded_answer_loss, self.backbone, batch)
            loss = answer_loss(self.backbone, batch).total
        return loss if batch.images else keep_in_graph(self.backbone, loss)

    def split(self, batch: MultimodalBatch, size: int | None) -> list[MultimodalBatch]:
        """Return the micro-batches of a batch, of at most `size` samples; None for a single one.

        The processes of a sharded model run the same number: where one has fewer, the last is
        repeated without labels, which adds 0 to loss and gradients.
        """
        pieces = batch.split(size or len(batch))
        if self.shards is not None and size is not None:  # on all processes or on none
            last = pieces[-1]
            empty = replace(last, labels=torch.full_like(last.labels, IGNORE_INDEX))
            pieces += [empty] * (self.shards.count_most(len(pieces)) - len(pieces))
        return pieces

    @property
    def low_precision(self) -> bool:
        """Whether the forward computes in 16 bit."""
        return self.dtype in (torch.bfloat16, torch.float16)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory, more time."""
        model = self.backbone.model
        # transformers 5.23 renames the method and warns of the old name, which earlier ones need
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        if getattr(model, "_require_grads_hook", None) is not None:
            # it lets gradients into what is embedded, so that a frozen tower would keep all of its
            # activations; only reentrant checkpointing needs that
            model.disable_input_require_grads()

    def compile(self) -> None:
        """Compile the model with torch.compile.

        Raises:
            ConfigError: The model is sharded.
        """
        if self.shards is not None:
            raise ConfigError(
                "model.compile was not tried with trainer.strategy fsdp2, whose layers are "
                "gathered between compiled parts. Leave model.compile out, or use "
                "--trainer.strategy ddp."
            )
        self.backbone.model.base_model.compile(dynamic=True)

    def set_train_modes(self) -> None:
        """Put what is trained into train mode and a frozen tower or projection into eval mode.

        The decoder is in train mode even if it is frozen: gradients run through it, and without
        train mode transformers silently switches its gradient checkpointing off. Its dropout is 0
        in the configs of all families.
        """
        trained = self.report.trainable_parts
        self.backbone.model.train()
        self.backbone.vision_tower.train(bool(trained & {Part.VISION, Part.VISION_LORA}))
        self.backbone.projector.train(Part.PROJECTOR in trained)

    def trained_state(self) -> dict[str, Tensor]:
        """Return the trained weights, named as in the Hugging Face model.

        Those of a sharded model are whole on the first process only, and all processes call this.
        """
        return {
            name: values_to_write(each.detach()) for name, each in self.trained_parameters().items()
        }

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return name -> parameter of what is trained; parameters may be sharded."""
        return {name: each for name, each in self.backbone.parameters() if each.requires_grad}

    @torch.no_grad()
    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Put trained weights back; their names must be those of `trained_state`."""
        own = self.trained_parameters()
        for name, tensor in state.items():
            copy_values(own[name], tensor)


def _check_trained_at_hand(backbone: Backbone, report: FreezeReport) -> None:
    """Refuse trained weights that are offloaded: those of a checkpoint could not be put there."""
    if backbone.model.device.type == "meta":  # there are no weights at all
        return
    offloaded = {name for name, _ in find_offloaded(backbone.model)}
    if found := sorted(offloaded.intersection(report.trainable_names)):
        raise ConfigError(
            f"model.policy {report.policy} trains {len(found)} tensors in layers that "
            f"model.device_map puts on the CPU or the disk, e.g. {found[0]!r}. To analyse such a "
            "model, `lightning export` it and name the exported folder as model.checkpoint."
        )


def _share_dtype(*modules: nn.Module) -> None:
    """Make all parameters float32 if some are."""
    parameters = chain.from_iterable(module.parameters() for module in modules)
    if any(parameter.dtype == torch.float32 for parameter in parameters):
        for module in modules:
            module.float()


def adapted_dtype(option: DType, device_type: str) -> torch.dtype:
    """Return the dtype of an option; `auto` is bfloat16 on an accelerator, float32 on the CPU."""
    if option == "auto":
        return torch.float32 if device_type == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, option)
    return dtype
