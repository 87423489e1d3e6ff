"""Freeze policies: which part of the model learns. FT-Proj, FT-E2E and LoRA differ in this object.

Terms follow "Cross-Modal Projection in Multimodal LLMs Doesn't Really Project Visual Attributes to
Textual Space" (Verma et al., ACL 2024): FT-Proj trains the projection only, FT-E2E the projection
and the LLM; the vision tower stays frozen.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.freeze_report import FreezeReport
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.models.lora import inject_lora
from lightning_mllm.models.quantization import check_no_quantized_trained, stored_weights


@dataclass(frozen=True)
class FreezePolicy(ABC):
    """Decides which parameters are trained. Subclass it, or use `ByPattern`, for your own."""

    @abstractmethod
    def select(self, backbone: Backbone) -> frozenset[str]:
        """Return the names of the parameters to train; may add parameters to the model (LoRA)."""

    def apply(self, backbone: Backbone) -> FreezeReport:
        """Freeze everything but the selected parameters, and report what was done.

        Applying the same policy twice is the same as applying it once. Selected parameters of the
        vision tower that never get a gradient (see `Backbone.idle_parameters`) stay frozen.

        Raises:
            ConfigError: A selected parameter belongs to a layer that is quantised.
        """
        idle = backbone.idle_parameters()
        selected = self.select(backbone) - idle
        check_no_quantized_trained(backbone.model, selected, str(self))
        stored = stored_weights(backbone.model)
        total: Counter[Part] = Counter()
        trained: Counter[Part] = Counter()
        idle_count = 0
        for name, parameter in backbone.parameters():
            part = backbone.part_of(name)
            count = stored[name].shape.numel() if name in stored else parameter.numel()
            total[part] += count
            parameter.requires_grad_(name in selected)
            if name in selected:
                trained[part] += count
            if name in idle:
                idle_count += count
        return FreezeReport(
            policy=str(self),
            parameters={part: total[part] for part in Part},
            trainable={part: trained[part] for part in Part},
            trainable_names=tuple(name for name, _ in backbone.parameters() if name in selected),
            idle=idle_count,
        )


@dataclass(frozen=True)
class _WholeParts(FreezePolicy):
    """Trains all parameters of some parts."""

    parts: ClassVar[tuple[Part, ...]] = ()

    def select(self, backbone: Backbone) -> frozenset[str]:
        return _names_of(backbone, self.parts)


@dataclass(frozen=True)
class ZeroShot(_WholeParts):
    """Train nothing: the untouched checkpoint."""


@dataclass(frozen=True)
class ProjectorOnly(_WholeParts):
    """FT-Proj: train the projection, with what else of it the family has.

    LLaVA-NeXT's row separator `image_newline` and the mergers of Qwen3-VL's DeepStack are part of
    the projection.
    """

    parts = (Part.PROJECTOR,)


@dataclass(frozen=True)
class ProjectorAndLLM(_WholeParts):
    """FT-E2E: train the projection and the whole LLM; the vision tower stays frozen."""

    parts = (Part.PROJECTOR, Part.LLM)


@dataclass(frozen=True)
class LLMOnly(_WholeParts):
    """Train the LLM, embeddings and head included."""

    parts = (Part.LLM,)


@dataclass(frozen=True)
class ProjectorAndVision(_WholeParts):
    """Train the projection and the vision tower."""

    parts = (Part.PROJECTOR, Part.VISION)


@dataclass(frozen=True)
class Everything(_WholeParts):
    """Train the whole model."""

    parts = (Part.VISION, Part.PROJECTOR, Part.LLM)


@dataclass(frozen=True)
class Lora(FreezePolicy):
    """Train low-rank adapters (peft) on the linear layers of the LLM, the vision tower or both.

    LoRA (Hu et al., ICLR 2022) replaces the weight W of a linear layer by W + alpha / rank * B A,
    with trained A (rank, inputs) and B (outputs, rank); B starts at 0.

    Attributes:
        rank: Rank of the update that an adapter adds to a weight matrix.
        alpha: Strength of the update, which is multiplied by alpha / rank.
        dropout: Probability of dropout on the adapters' input.
        target: Where adapters go. The projector and the head never get one.
        modules: Names of the linear layers that get an adapter, e.g. `q_proj`; if empty, all linear
            layers of the target.
        projector: Whether the whole projection is trained beside the adapters.

    Raises:
        ConfigError: A number is out of its range.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target: Literal["llm", "vision", "both"] = "llm"
    modules: Sequence[str] = ()
    projector: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"Lora: rank must be at least 1, not {self.rank}.")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"Lora: alpha must be a positive number, not {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"Lora: dropout must lie in [0, 1), not {self.dropout}.")

    def select(self, backbone: Backbone) -> frozenset[str]:
        """Inject the adapters and return their names, with the projector's if it is trained too."""
        parts_of_target = {
            "llm": (Part.LLM,),
            "vision": (Part.VISION,),
            "both": (Part.VISION, Part.LLM),
        }
        inject_lora(
            backbone,
            parts_of_target[self.target],
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            modules=tuple(self.modules),
        )
        trained = (Part.VISION_LORA, Part.LLM_LORA)
        return _names_of(backbone, (*trained, Part.PROJECTOR) if self.projector else trained)


@dataclass(frozen=True)
class LastLayers(FreezePolicy):
    """Train the last layers of the LLM; its embeddings, final norm and head stay frozen.

    Attributes:
        layers: How many of the LLM's layers are trained, counted from its end.
        projector: Whether the whole projection is trained with them.

    Raises:
        ConfigError: There is no layer to train.
    """

    layers: int
    projector: bool = False

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ConfigError(f"LastLayers: layers must be at least 1, not {self.layers}.")

    def select(self, backbone: Backbone) -> frozenset[str]:
        """Return the names of the last layers' parameters, with the projector's if it is trained.

        Raises:
            ConfigError: The LLM has fewer layers.
        """
        layers = decoder_layers(backbone)
        if self.layers > len(layers):
            raise ConfigError(
                f"LastLayers: the LLM has {len(layers)} layers, so the last {self.layers} can't be "
                f"trained. Set layers to a number from 1 to {len(layers)}."
            )
        trained = set(map(id, nn.ModuleList(layers[-self.layers :]).parameters()))
        names = {name for name, each in backbone.parameters(Part.LLM) if id(each) in trained}
        return frozenset(names) | _names_of(backbone, (Part.PROJECTOR,) if self.projector else ())


@dataclass(frozen=True)
class Combined(FreezePolicy):
    """Train all that any of several policies trains, e.g. a tower in full and adapters on the LLM.

    Attributes:
        policies: The policies; at most one of them puts adapters into the model.

    Raises:
        ConfigError: There is no policy, or several put adapters into the model.
    """

    policies: Sequence[FreezePolicy]

    def __post_init__(self) -> None:
        if not self.policies:
            raise ConfigError("Combined: name at least one policy in `policies`.")
        if self._count_lora() > 1:
            raise ConfigError(
                "Combined: a model takes the adapters of one Lora. For adapters on tower and LLM, "
                "give it `target: both`."
            )

    def _count_lora(self) -> int:
        return sum(
            each._count_lora() if isinstance(each, Combined) else isinstance(each, Lora)
            for each in self.policies
        )

    def select(self, backbone: Backbone) -> frozenset[str]:
        """Return the names that any of the policies selects."""
        for policy in self.policies:
            policy.select(backbone)  # adapters change the names of the layers that they are on
        return frozenset[str]().union(*(policy.select(backbone) for policy in self.policies))


@dataclass(frozen=True)
class ByPattern(FreezePolicy):
    r"""Train the parameters whose name matches one of the patterns.

    Attributes:
        patterns: Regular expressions, searched for anywhere in the names of
            `model.named_parameters()`, e.g. `layers\.0\.mlp`.

    Raises:
        ConfigError: A pattern is not a regular expression.
    """

    patterns: Sequence[str]

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(
                    f"ByPattern: {pattern!r} is not a regular expression: {error}."
                ) from error

    def select(self, backbone: Backbone) -> frozenset[str]:
        """Return the matching names.

        Raises:
            ConfigError: A pattern matches nothing, or only parameters that never get a gradient.
        """
        names = [name for name, _ in backbone.parameters()]
        idle = backbone.idle_parameters()
        selected: set[str] = set()
        for pattern in self.patterns:
            matches = {name for name in names if re.search(pattern, name)}
            if not matches:
                self._refuse(pattern, "nothing", names)
            if matches <= idle:
                self._refuse(pattern, "only parameters of the tower that get no gradient", names)
            selected |= matches
        return frozenset(selected)

    @staticmethod
    def _refuse(pattern: str, what: str, names: Sequence[str]) -> None:
        raise ConfigError(
            f"ByPattern: {pattern!r} matches {what}. Names look like {names[0]!r} and "
            f"{names[-1]!r}."
        )


def _names_of(backbone: Backbone, parts: tuple[Part, ...]) -> frozenset[str]:
    """Return the parameter names of some parts; none if there are no parts."""
    return frozenset(name for name, _ in backbone.parameters() if backbone.part_of(name) in parts)
