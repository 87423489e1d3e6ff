"""Many vectors on the same prompts: images are encoded once, and layers before a vector run once.

What is computed is what `steering` does: X + added enters the layers of a window at the positions
of a case. Up to the first of these layers all cases have the states of the clean run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mllm.analysis.core.windows import Window
from lightning_mllm.analysis.forward.float32_head import next_token_head_logits
from lightning_mllm.analysis.forward.stepwise import StepwiseStream
from lightning_mllm.analysis.steering.steering import add_at_positions
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers


@dataclass(frozen=True, eq=False)
class SteeringCase:
    """Vectors that are added to prompts.

    Attributes:
        positions: (batch, sequence) bool, where they are added.
        window: The layers in front of which they are added.
        vectors: (classes, layers + 1, width): entry l in front of layer l.
        which: (batch,), the class whose vector each prompt gets.
        scale: What vectors are multiplied by.
    """

    positions: Tensor
    window: Window
    vectors: Tensor
    which: Tensor
    scale: float

    def add(self, layer: int, hidden: Tensor) -> Tensor:
        """Return what enters a layer, (batch, sequence, width), with the vectors in it."""
        if layer not in self.window:
            return hidden
        added = self.scale * self.vectors[:, layer][self.which]
        return add_at_positions(hidden, self.positions, added[:, None])


@torch.no_grad()
def read_steered(
    backbone: Backbone, prompts: MultimodalBatch, cases: Sequence[SteeringCase]
) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of each case and the logits at LAST, (batch, vocabulary), in float32.

    The clean run's come first, as number -1; the cases follow by their first layer.

    Args:
        backbone: The model.
        prompts: From `MultimodalBatch.prompts`, on the model's device.
        cases: What is added.
    """
    layers = decoder_layers(backbone)
    starting: dict[int, list[int]] = {}
    for number, case in enumerate(cases):
        starting.setdefault(case.window.start, []).append(number)
    stream = StepwiseStream.of(backbone, prompts, prompts.attention_mask.bool())
    entering, left = [], stream.hidden
    for index, layer in enumerate(layers):
        entering.append(stream.hidden if index in starting else None)
        left = stream.hidden = stream.through(index, layer)
    yield -1, next_token_head_logits(backbone, left[:, -1])
    for start, numbers in sorted(starting.items()):
        for number in numbers:
            case = cases[number]
            hidden = entering[start]
            assert hidden is not None
            for index in range(start, len(layers)):
                stream.hidden = case.add(index, hidden)
                hidden = stream.through(index, layers[index])
            yield number, next_token_head_logits(backbone, hidden[:, -1])
        entering[start] = None  # frees it
