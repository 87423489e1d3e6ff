"""An MLLM under a freeze policy: what is trained, in which precision and in which mode.

Plain torch, without Lightning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.checkpoint import load_projector
from lightning_mllm.models.freeze import FreezePolicy
from lightning_mllm.models.freeze_report import FreezeReport
from lightning_mllm.models.loading import AttentionImplementation
from lightning_mllm.models.loss import answer_loss, keep_loss_in_graph
from lightning_mllm.models.placement import Placement, find_offloaded

DType = Literal["auto", "float32", "bfloat16", "float16"]
ModelEdit = Callable[[Backbone, MultimodalBatch], AbstractContextManager[None]]


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        checkpoint: Hub id or folder.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether code that comes with the checkpoint may run.
    """

    checkpoint: str
    revision: str | None = None
    trust_remote_code: bool = False

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the checkpoint's tokenizer."""
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            self.checkpoint, revision=self.revision, trust_remote_code=self.trust_remote_code
        )
        return tokenizer


class AdaptedModel:
    """A loaded model and what a freeze policy made of it.

    Frozen weights have the given dtype. Trained weights are float32, so that small updates are not
    rounded away. With a 16-bit dtype the forward runs under autocast.

    Attributes:
        backbone: The model.
        report: What the policy made trainable.
        dtype: Dtype of the frozen weights.
        edit: Makes the context that changes the model's computations while it runs on a
            (micro-)batch; None if nothing is changed.
    """

    def __init__(self, backbone: Backbone, policy: FreezePolicy, dtype: torch.dtype) -> None:
        self.backbone = backbone
        self.dtype = dtype
        self.edit: ModelEdit | None = None
        self.report: FreezeReport = policy.apply(backbone)
        _check_trained_at_hand(backbone, self.report)
        if Part.VISION in self.report.trainable_parts:
            backbone.vision_tower.float()  # norms in mixed precision would not run on the CPU
        for _, parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if not backbone.family.mixes_dtypes:
            _share_dtype(backbone.vision_tower, backbone.model.get_input_embeddings())

    @classmethod
    def load(
        cls,
        source: Source,
        policy: FreezePolicy,
        *,
        dtype: torch.dtype,
        attention: AttentionImplementation = "sdpa",
        projector: Path | None = None,
        placement: Placement | None = None,
    ) -> AdaptedModel:
        """Load a checkpoint and apply a policy to it.

        Args:
            source: The checkpoint.
            policy: What is trained.
            dtype: Dtype of the frozen weights.
            attention: Attention implementation of transformers.
            projector: A `projector.safetensors` that replaces the checkpoint's projection.
            placement: On which devices the model lies; by default in the CPU's memory.

        Raises:
            CheckpointError: The checkpoint or the projector is missing, damaged, or does not fit.
            ConfigError: The policy does not fit the model, or a package is not installed.
        """
        backbone = Backbone.from_pretrained(
            source.checkpoint,
            dtype=dtype,
            attention=attention,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            placement=placement,
        )
        if projector is not None:
            load_projector(backbone, projector)
        return cls(backbone, policy, dtype)

    def autocast(self, device_type: str) -> torch.autocast:
        """Return the context in which the forward runs: active only with 16-bit weights."""
        dtype = self.dtype if self.low_precision else torch.bfloat16
        return torch.autocast(device_type, dtype=dtype, enabled=self.low_precision)

    def edited(self, batch: MultimodalBatch) -> AbstractContextManager[None]:
        """Return the context in which the model runs on a batch; enter it within `autocast`."""
        if self.edit is None or not len(batch):
            return nullcontext()
        return self.edit(self.backbone, batch)

    def loss(self, batch: MultimodalBatch) -> Tensor:
        """Return `AnswerLoss.total` of a (micro-)batch, under autocast and under the edit."""
        with self.autocast(batch.input_ids.device.type), self.edited(batch):
            loss = answer_loss(self.backbone, batch).total
        return loss if batch.images else keep_loss_in_graph(self.backbone, loss)

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
        """Return the trained weights, named as in the Hugging Face model."""
        state: dict[str, Tensor] = {}
        for name, parameter in self.backbone.parameters():
            if parameter.requires_grad:
                state[name] = parameter.detach()
        return state

    @torch.no_grad()
    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Put trained weights back; their names must be those of `trained_state`."""
        own = self.trained_state()
        for name, tensor in state.items():
            own[name].copy_(tensor)


def _check_trained_at_hand(backbone: Backbone, report: FreezeReport) -> None:
    """Refuse trained weights that are offloaded: those of a checkpoint could not be put there."""
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
