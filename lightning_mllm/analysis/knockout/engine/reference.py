"""The definition, run as it stands: for each case a full forward, with its block hooked in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_mllm.analysis.core.windows import Window
from lightning_mllm.analysis.forward.hidden_keys import HiddenKeys
from lightning_mllm.analysis.forward.prompts import Prompts, prompt_log_probabilities
from lightning_mllm.analysis.forward.suffix.budget import BudgetPlan
from lightning_mllm.analysis.forward.suffix.rows import RowVariant
from lightning_mllm.analysis.knockout.engine.base import KnockoutEngine, Readings
from lightning_mllm.analysis.knockout.mask import mask_keys
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import attention_of_layers, decoder_layers
from lightning_mllm.progress import track


class ReferenceEngine(KnockoutEngine):
    """One forward per case, images encoded once.

    The clean run has explicit masks too, which hide nothing more. So all runs go through the same
    kernels, and what a block does not touch is the same to the bit, in half precision as well.
    """

    name: ClassVar[str] = "reference"

    def check(self, backbone: Backbone, prompts: Prompts) -> None:
        """Check that hiding the whole prompt from LAST, in all layers, changes anything.

        Raises:
            ConfigError: It does not: attention ignores the mask.
        """
        real = prompts.batch.attention_mask.bool()
        last = torch.zeros_like(real)
        last[:, -1] = True
        if not (real & ~last).any():
            return
        variant = RowVariant(HiddenKeys(real & ~last, last), _all_layers(backbone))
        some = torch.arange(64, device=real.device)[None]  # any will do, in any vocabulary
        readings = self.read(backbone, prompts, [variant], some)
        if torch.equal(readings.logprobs, readings.clean_logprobs):
            raise ConfigError(
                "Hiding the whole prompt from its last position, in all layers, changes nothing at "
                f"all: attention {attention_of_layers(backbone)!r} ignores the mask. Load the "
                "model with attention=sdpa or attention=eager."
            )

    def read(
        self,
        backbone: Backbone,
        prompts: Prompts,
        variants: Sequence[RowVariant],
        ids: Tensor,
        plan: BudgetPlan | None = None,
    ) -> Readings:
        """Run all cases on these prompts, one after the other."""
        with mask_keys(backbone, [], _all_layers(backbone)):
            clean = prompt_log_probabilities(prompts.forward(backbone)[0])
            readings = Readings.unchanged(clean, ids, variants, self.name)
            for number, variant in enumerate(track(variants, "Knockouts of a batch")):
                with mask_keys(backbone, [variant.hidden], variant.window):
                    blocked = prompt_log_probabilities(prompts.forward(backbone)[0])
                readings.put(
                    [number],
                    variant.hidden.acts[:, None],
                    logprobs=blocked.gather(1, readings.ids)[:, None],
                    top=blocked.argmax(1, keepdim=True),
                )
        return readings


def _all_layers(backbone: Backbone) -> Window:
    depth = len(decoder_layers(backbone))
    return Window(depth // 2, 0, depth)
