"""The definition, run as it stands: for each case a full forward, with its block hooked in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_mllm.analysis.blocks import Window
from lightning_mllm.analysis.knockout import blocked, decoder_layers
from lightning_mllm.analysis.knockout_engine import Case, KnockoutEngine, Parts
from lightning_mllm.analysis.prompt_pass import Prompts, log_probabilities
from lightning_mllm.models.backbone import Backbone


class ReferenceEngine(KnockoutEngine):
    """One forward per case, images encoded once.

    The clean run has explicit masks too, which hide nothing further: so all runs go through the same kernels, and what
    a block does not touch is the same to the bit, in half precision as well.
    """

    name: ClassVar[str] = "reference"

    def read(self, backbone: Backbone, prompts: Prompts, cases: Sequence[Case], ids: Tensor) -> Parts:
        """Run all cases on these prompts, one after the other."""
        depth = len(decoder_layers(backbone))
        with blocked(backbone, prompts.batch, [], Window(depth // 2, 0, depth)):
            clean = log_probabilities(prompts.forward(backbone)[0])
            ids = torch.cat([clean.argmax(1, keepdim=True), ids], dim=1)
            logprobs, tops = [], []
            for case in cases:
                with blocked(backbone, prompts.batch, [case.block], case.window):
                    hidden = log_probabilities(prompts.forward(backbone)[0])
                logprobs.append(hidden.gather(1, ids))
                tops.append(hidden.argmax(1))
        return Parts(ids, clean.gather(1, ids), torch.stack(logprobs, dim=1), torch.stack(tops, dim=1), self.name)
