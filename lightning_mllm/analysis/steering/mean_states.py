"""Mean states per class: what vectors for steering are made of.

The states are those of the residual stream in front of each layer and of the final norm. Of each
sample they are averaged over the tokens of some segments, then over the samples of a class. Sums
are kept per group of pictures, so that what is derived from them can be tried on other pictures.

With the states of a model before fine-tuning (`before`), and run on the fine-tuned model, it also
says how each class has moved: shift = mean after - mean before (Khayatan et al., 2025, arXiv
2501.03012), and how near the state before comes to the fine-tuned one when the shift of *other*
pictures is added to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.core.running_sums import RunningSums
from lightning_mllm.analysis.core.streamed import StreamedAnalysis
from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.analysis.forward.observe import ObservedState, observe_stream
from lightning_mllm.analysis.steering.class_means import (
    COUNT,
    PICTURE,
    STATES,
    TOKEN,
    WEIGHTS,
    ClassMeans,
    check_same_samples,
)
from lightning_mllm.analysis.steering.classes import ClassBy, SampleClasses
from lightning_mllm.analysis.steering.mean_summary import summarise_means
from lightning_mllm.analysis.steering.steer import find_steer_positions, name_steer_segments
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.models.backbone import Backbone, fingerprint_backbone


class MeanStates(StreamedAnalysis):
    """Reads the mean states of classes, and how fine-tuning has moved them.

    Args:
        classes: The classes, in lower case; by default all that the data have. Samples of others
            are left out.
        by: What tells classes apart: the right `answer`, or the `kind` of question.
        segments: Over whose tokens states are averaged, e.g. "image object"; "question+last" is
            over the tokens of both.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default
            all.
        before: Folder of the same analysis of a model before it was fine-tuned to the one that is
            read now; by default there is none.
        groups: Into how many groups of pictures samples are put, for intervals.
        seed: Seed of the groups, and of random vectors.
        snapshot_every: Number of batches between two files of what is found so far.
        label: Name of the analysis and its folder, where one run has several of its class.

    Raises:
        ConfigError: A segment does not exist, or an option has an impossible value.
    """

    default_name: ClassVar[str] = "mean_states"

    def __init__(
        self,
        *,
        classes: Sequence[str] | None = None,
        by: ClassBy = "answer",
        segments: Sequence[str] = ("image object", "last"),
        kind_depth: int | None = None,
        before: str | None = None,
        groups: int = 10,
        seed: int = 0,
        snapshot_every: int = 50,
        label: str = "",
    ) -> None:
        self.segments = tuple(map(name_steer_segments, segments))
        if by not in get_args(ClassBy):
            raise ConfigError(f"MeanStates.by is {by!r}; it can be answer or kind.")
        if not self.segments or (classes is not None and not classes):
            raise ConfigError(
                "MeanStates needs a segment or more, and classes: null for all, or one or more."
            )
        self.classes = None if classes is None else tuple(classes)
        self.by, self.kind_depth, self.before = by, kind_depth, before
        super().__init__(
            sets=TokenSets(), groups=groups, seed=seed, snapshot_every=snapshot_every, label=label
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the sums."""
        return {
            "classes": None if self.classes is None else list(self.classes),
            "by": self.by,
            "segments": list(self.segments),
            "kind_depth": self.kind_depth,
            "groups": self.groups,
            "seed": self.seed,
        }

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, masks: Tensor
    ) -> Mapping[str, Tensor]:
        """Return the states of samples of a class, (batch, layers + 1, width) per segments.

        A sample of no class, or without tokens of a segment, has NaN there.
        """
        found = SampleClasses.of(batch, self.tokenizer, self.by, self.kind_depth)
        rows = [row for row, name in enumerate(found.names) if self._counts(name)]
        for row in rows:
            self._note(f"{PICTURE}/{batch.pictures[row]}", 0)
            if self.by == "answer":
                token = found.first_tokens[row]
                self._note(f"{TOKEN}/{token}/{found.names[row]}", token)
        self._note(f"{WEIGHTS}/{fingerprint_backbone(backbone.model)}", 0)
        self._names = found.names
        if not rows:
            return {}
        prompts = batch.take(rows).prompts()
        read: dict[str, list[Tensor]] = {at: [] for at in self.segments}
        masks = torch.stack([find_steer_positions(prompts.spans, at) for at in self.segments], 1)

        def keep(_: ObservedState, __: int, states: Tensor) -> None:
            own = masks.to(states.device).float()
            read_states = states.float().where(own.any(1)[..., None], 0)  # padding may be NaN
            sums = own @ read_states  # in float16 a sum over many tokens overflows
            check_finite(sums, prompts.sample_ids, "The LLM's states")
            means = sums.double() / own.sum(-1, keepdim=True)  # NaN without tokens
            for at, mean in zip(self.segments, means.unbind(1), strict=True):
                read[at].append(mean)

        observe_stream(backbone, prompts, [ObservedState.RESIDUAL], keep)
        measured = {}
        for at, layers in read.items():
            states = torch.stack(layers, dim=1)
            measured[at] = states.new_full((len(batch), *states.shape[1:]), torch.nan)
            measured[at][rows] = states
        return measured

    def add(self, measured: Mapping[str, Tensor], batch: MultimodalBatch) -> None:
        """Add the states of samples to the sums of their classes and groups."""
        names = self._names
        for at, states in measured.items():
            there = states.isfinite().flatten(1).all(1).tolist()
            rows: dict[str, list[int]] = {}
            for row in range(len(batch)):
                if there[row]:
                    rows.setdefault(names[row], []).append(row)
            for name, own in rows.items():
                ones = states.new_ones(len(own))
                self.add_to_groups(
                    {f"{STATES}/{at}/{name}": states[own], f"{COUNT}/{at}/{name}": ones},
                    batch.take(own),
                )

    def compute(self) -> AnalysisResult:
        """Return the result of all samples.

        Raises:
            DataError: There is no sample of any class.
        """
        self.settle()
        found = self._all()
        if not any(name.startswith(f"{STATES}/") for name in found.sums):
            raise DataError(
                f"{self.name} has read no states: none of {len(found.done)} samples is of a class "
                f"({', '.join(self.classes or ('any',))}) and has tokens of "
                f"{', '.join(self.segments)}. Name other classes or segments; objects need boxes."
            )
        return self.summarise(found, self.making)

    def summarise(self, found: RunningSums, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return norms per class, segments and layer; with `before` also how they have moved."""
        means = ClassMeans.of(found, self.settings, self.name)
        before = self._before
        if before is not None:
            check_same_samples(before, means)
            settings = {**settings, "before": {"weights": before.weights, "sums": before.digest}}
        return summarise_means(
            self.name, means, before, settings, left_out=len(found.left_out), seed=self.seed
        )

    def means(self) -> ClassMeans:
        """Return what was read so far, to make vectors of."""
        self.settle()
        return ClassMeans.of(self._all(), self.settings, self.name)

    @cached_property
    def _before(self) -> ClassMeans | None:
        return None if self.before is None else ClassMeans.load(self.before)

    def _counts(self, name: str) -> bool:
        return bool(name) and (self.classes is None or name in self.classes)

    def _note(self, name: str, number: int) -> None:
        """Keep a name, of a class, a picture or a model, and a number of it."""
        self.found.kept.setdefault(name, torch.tensor([number]))
