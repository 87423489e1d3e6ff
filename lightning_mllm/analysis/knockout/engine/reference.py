"""The definition, run as it stands: for each case a full forward, with its block hooked in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from lightning_mllm.analysis.core.windows import Window
from lightning_mllm.analysis.forward.prompts import Prompts, log_probabilities
from lightning_mllm.analysis.knockout.block import Block
from lightning_mllm.analysis.knockout.engine.interface import Case, KnockoutEngine, Parts
from lightning_mllm.analysis.knockout.mask import blocked
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import attention_of, decoder_layers
from lightning_mllm.types import Segment, TokenSpans


class ReferenceEngine(KnockoutEngine):
    """One forward per case, images encoded once.

    The clean run has explicit masks too, which hide nothing further: so all runs go through the same kernels, and what
    a block does not touch is the same to the bit, in half precision as well.
    """

    name: ClassVar[str] = "reference"

    def check(self, backbone: Backbone, prompts: Prompts) -> None:
        """See whether hiding the whole prompt from LAST, in all layers, changes anything.

        Raises:
            ConfigError: It does not: attention ignores the mask.
        """
        real = prompts.batch.attention_mask.bool()
        last = torch.zeros_like(real)
        last[:, -1] = True
        if not (real & ~last).any():
            return
        spans = TokenSpans({Segment.QUESTION: real & ~last, Segment.LAST: last})
        case = Case(Block.parse("question->last"), _whole(backbone))
        some = torch.arange(64, device=real.device)[None]  # any will do, in any vocabulary
        parts = self.read(backbone, Prompts(replace(prompts.batch, spans=spans), prompts.images), [case], some)
        if torch.equal(parts.logprobs, parts.clean_logprobs):
            raise ConfigError(
                "Hiding the whole prompt from its last position, in all layers, changes nothing at all: attention "
                f"{attention_of(backbone)!r} ignores the mask. Load the model with attention=sdpa or attention=eager."
            )

    def read(self, backbone: Backbone, prompts: Prompts, cases: Sequence[Case], ids: Tensor) -> Parts:
        """Run all cases on these prompts, one after the other."""
        with blocked(backbone, prompts.batch, [], _whole(backbone)):
            clean = log_probabilities(prompts.forward(backbone)[0])
            clean_top = clean.argmax(1, keepdim=True)
            ids = torch.cat([clean_top, ids], dim=1)
            logprobs, tops = [], []
            for case in cases:
                with blocked(backbone, prompts.batch, [case.block], case.window):
                    hidden = log_probabilities(prompts.forward(backbone)[0])
                logprobs.append(hidden.gather(1, ids))
                tops.append(hidden.argmax(1))
        return Parts(
            ids=ids,
            clean_logprobs=clean.gather(1, ids)[:, None].expand(-1, len(cases), -1),
            clean_top=clean_top.expand(-1, len(cases)),
            logprobs=torch.stack(logprobs, dim=1),
            top=torch.stack(tops, dim=1),
            engine=self.name,
        )


def _whole(backbone: Backbone) -> Window:
    depth = len(decoder_layers(backbone))
    return Window(depth // 2, 0, depth)
