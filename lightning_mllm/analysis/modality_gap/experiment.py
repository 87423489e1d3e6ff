"""The modality integration rate: how far visual tokens are from textual ones, inside the LLM.

The measure is that of Huang et al., "Deciphering Cross-Modal Alignment in Large Vision-Language
Models with Modality Integration Rate" (arXiv 2410.07167): the Fréchet distance of visual and
textual tokens at each layer, and the logarithm of the sum over layers; the lower, the closer they
are. It needs no answers, and falls while a projection is trained. The released code takes the root
of a matrix by an iteration that stays where it starts; here it is exact, so that values can't be
compared with those of its fast mode.

Values depend on the text, on the prompt's template and on the number of tokens. Compare models on
the same samples only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.core.running_sums import RunningSums
from lightning_mllm.analysis.core.streamed import StreamedAnalysis
from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.analysis.forward.observe import ObservedState, observe_stream
from lightning_mllm.analysis.modality_gap.summary import summarise_modality_gap
from lightning_mllm.analysis.modality_gap.token_sums import TokenSums, trim_lists
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.statistics.jackknife import jackknife_group


class MIR(StreamedAnalysis):
    """Measures the modality integration rate of images and the text behind them.

    The textual tokens are all those behind the first image: of the data's own text, and of the
    template. At each layer, tokens of a set whose norm is more than 3 standard deviations away from
    the set's median norm are replaced by the set's coordinate-wise median; both sets are divided by
    the mean norm of the textual tokens. The state after the last layer is that behind the final
    norm. The score is in the result's settings; see `mir_score`.

    Args:
        answers: Whether answers, such as the captions of images, are textual too; the prompt always
            is.
        groups: Number of groups that samples are put into, for intervals; with 1 there is no
            interval. Each takes two matrices of width x width per layer: 9 GB of a 7B model.
        seed: Seed of the groups, and of the tokens of which medians are taken.
        snapshot_every: Number of batches between two files of what is found so far.
        label: Name of the analysis and its folder, where one run has several of its class.
    """

    default_name: ClassVar[str] = "modality_gap"
    fewest_groups: ClassVar[int] = 1

    def __init__(
        self,
        *,
        answers: bool = True,
        groups: int = 16,
        seed: int = 0,
        snapshot_every: int = 50,
        label: str = "",
    ) -> None:
        super().__init__(
            sets=TokenSets(answers=answers, sink_ratio=None),
            groups=groups,
            seed=seed,
            snapshot_every=snapshot_every,
            label=label,
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the sums."""
        return {
            "text": "of the data, behind the first image",
            "answers": self.sets.answers,
            "groups": self.groups,
            "seed": self.seed,
        }

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, masks: Tensor
    ) -> dict[str, Tensor]:
        """Take in the states of a batch, whose samples are all new."""
        depth, norm = len(decoder_layers(backbone)), backbone.final_norm
        groups = [jackknife_group(picture, self.seed, self.groups) for picture in batch.pictures]
        at = torch.tensor(groups, device=masks.device)
        sums = TokenSums(self.found, masks, at, self.groups, depth)
        sums.draw(batch.sample_ids, self.seed)

        def observe(_: ObservedState, layer: int, states: Tensor) -> None:
            if layer:
                # not called: this runs in a hook on the norm
                last = norm.forward(states) if layer == depth else states
                sums.observe(layer - 1, last)

        observe_stream(backbone, batch, (ObservedState.RESIDUAL,), observe)
        sums.finish()
        return {}

    def summarise(self, found: RunningSums, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the distance at each layer and the score, with their intervals."""
        trim_lists(found)
        return summarise_modality_gap(self.name, found, settings)
