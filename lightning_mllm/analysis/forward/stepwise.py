"""A batch in the decoder: caught before the first layer, and run through one layer at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import Arguments, hook_before_layers, hook_between_layers
from lightning_mllm.models.layers import decoder_layers, layers_and_norm, run_layers_uncompiled


@dataclass
class StepwiseStream:
    """A batch between two layers of the decoder.

    Attributes:
        hidden: (batch, sequence, width), what enters the next layer.
        arguments: What each layer is called with, besides.
        counted: (batch, sequence) bool, which tokens count.
        between: Layer -> what is added to its output before the next one, as the stream.
    """

    hidden: Tensor
    arguments: Sequence[Arguments]
    counted: Tensor
    between: Mapping[int, Tensor]

    @classmethod
    def of(cls, backbone: Backbone, batch: MultimodalBatch, counted: Tensor) -> StepwiseStream:
        """Catch a batch before the first layer."""
        states: list[Tensor] = []
        arguments: list[Arguments] = []

        def catch(index: int, hidden: Tensor, others: Arguments) -> None:
            if index == 0:
                states.append(hidden)
            arguments.append(others)

        layers, between = dict(enumerate(decoder_layers(backbone))), dict[int, Tensor]()
        with (
            hook_before_layers(layers, catch),
            hook_between_layers(layers_and_norm(backbone), between),
        ):
            run_layers_uncompiled(backbone, batch)
        return cls(states[0], arguments, counted, between)

    def through(self, index: int, layer: nn.Module) -> Tensor:
        """Return what a layer makes of it, as it enters the next one."""
        # not called: a call would run what torch.compile made of the layer, without our hooks
        out: Tensor = layer.forward(self.hidden, **self.arguments[index])
        return out + self.between[index] if index in self.between else out
