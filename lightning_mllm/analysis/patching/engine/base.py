"""What an engine of patching takes and gives, and what all engines do alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from lightning_mllm.analysis.forward.prompts import Prompts, prompt_log_probabilities
from lightning_mllm.analysis.patching.alignment import check_prompt_alignment, mask_patched
from lightning_mllm.analysis.patching.edits import PatchCase, check_patch_case
from lightning_mllm.analysis.patching.patch import PatchKind
from lightning_mllm.analysis.patching.source import check_patch_model
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.models.backbone import Backbone

DIRECTIONS = ("denoising", "noising")  # what is patched: the corrupted run, or the clean one


@dataclass(frozen=True)
class PatchReadings:
    """What the model says at the LAST position of both runs, and with each patch in either.

    Log-probabilities are over the whole output vocabulary, in float32, or in float64 for a model in
    float64. The first axis is that of `DIRECTIONS`: the run that is patched is the corrupted one,
    then the clean one.

    Attributes:
        base: (2, batch, k) log-probabilities of the ids in the run that is patched, without patch.
        base_top: (2, batch) its argmax.
        logprobs: (2, batch, cases, k) log-probabilities of the ids.
        top: (2, batch, cases) the argmax.
        size: (batch, cases) number of patched positions.
        engine: Name of the engine that computed them.
    """

    base: Tensor
    base_top: Tensor
    logprobs: Tensor
    top: Tensor
    size: Tensor
    engine: str

    @classmethod
    def unchanged(
        cls, logits: Sequence[Tensor], ids: Tensor, positions: Sequence[Tensor], engine: str
    ) -> PatchReadings:
        """Return readings in which no patch changes anything.

        Args:
            logits: What the corrupted and the clean run say, (batch, vocabulary) each.
            ids: (batch, k), which are read.
            positions: Where each case patches, (batch, sequence) bool.
            engine: Name of the engine.
        """
        every = torch.stack([prompt_log_probabilities(each) for each in logits])
        base = every.gather(2, ids.expand(2, -1, -1))
        top = every.argmax(2)
        count = len(positions)
        size = torch.stack([mask.sum(1) for mask in positions], dim=1)
        logprobs = base[:, :, None].repeat(1, 1, count, 1)
        return cls(base, top, logprobs, top[..., None].repeat(1, 1, count), size, engine)

    def put(self, direction: int, cases: Sequence[int], logits: Tensor, ids: Tensor) -> None:
        """Fill in what some cases say.

        Args:
            direction: Number of the direction.
            cases: Numbers of the cases.
            logits: (cases, batch, vocabulary).
            ids: (batch, k), which are read.
        """
        every = prompt_log_probabilities(logits)
        read = every.gather(2, ids.expand(len(every), -1, -1)).transpose(0, 1)
        there = self.size[:, cases] > 0
        own = self.logprobs[direction]
        own[:, cases] = read.where(there[..., None], own[:, cases])
        tops = self.top[direction]
        tops[:, cases] = every.argmax(2).T.where(there, tops[:, cases])

    @classmethod
    def join(cls, pieces: Sequence[PatchReadings]) -> PatchReadings:
        """Put the readings of consecutive prompts together."""
        tensors = {}
        for field in fields(cls):
            if field.name != "engine":
                dim = 0 if field.name == "size" else 1
                parts = [getattr(piece, field.name) for piece in pieces]
                tensors[field.name] = torch.cat(parts, dim=dim)
        return cls(**tensors, engine=pieces[0].engine)


@dataclass(frozen=True)
class PromptPair:
    """The prompts of clean and of corrupted runs, row by row.

    Attributes:
        clean: Prompts whose segments say where patches are.
        corrupted: Their partners.
    """

    clean: Prompts
    corrupted: Prompts

    @property
    def directions(self) -> tuple[tuple[Prompts, Prompts], ...]:
        """For each of `DIRECTIONS`, the prompts that are patched, and those of the source."""
        return (self.corrupted, self.clean), (self.clean, self.corrupted)

    def take(self, rows: Sequence[int]) -> PromptPair:
        """Return a run of the pairs."""
        return PromptPair(self.clean.take(rows), self.corrupted.take(rows))

    def positions(self, cases: Sequence[PatchCase]) -> list[Tensor]:
        """Return where each case patches, (batch, sequence) bool each."""
        found = {}
        for patch in dict.fromkeys(case.patch for case in cases):
            found[patch] = mask_patched(patch, self.clean.batch, self.corrupted.batch)
        return [found[case.patch] for case in cases]


class PatchEngine(ABC):
    """Reads what a model says in two runs, each patched with the other's states."""

    name: ClassVar[str]

    @torch.no_grad()
    def run(
        self,
        backbone: Backbone,
        clean: MultimodalBatch,
        corrupted: MultimodalBatch,
        cases: Sequence[PatchCase],
        ids: Tensor,
    ) -> PatchReadings:
        """Run all cases, in both directions.

        Args:
            backbone: The model, in eval mode.
            clean: With or without answers, which are not looked at. Their segments say where
                patches are.
            corrupted: The partner of each.
            cases: Any mixture of patches and windows.
            ids: (batch, k) vocabulary ids to read.

        Raises:
            ConfigError: There is no case, the model has no such layer, head or state, or is in
                train mode.
            DataError: Prompts do not correspond, or the batch lacks the positions of a segment.
            NotFiniteError: The model's log-probabilities are not finite.
        """
        if not cases:
            raise ConfigError("There is nothing to patch. Give at least one case.")
        check_patch_model(backbone, find_patch_kinds(cases))
        for case in cases:
            check_patch_case(backbone, case)
        pair = PromptPair(Prompts.of(backbone, clean), Prompts.of(backbone, corrupted))
        check_prompt_alignment(pair.clean.batch, pair.corrupted.batch)
        self.check(backbone, pair)
        ids, size = ids.to(pair.clean.batch.input_ids.device), self.prompts_at_once(backbone, pair)
        pieces = []
        for start in range(0, len(clean), size):
            rows = range(start, min(start + size, len(clean)))
            pieces.append(self.read(backbone, pair.take(rows), cases, ids[rows.start : rows.stop]))
        found = PatchReadings.join(pieces)
        for logprobs in (found.base, found.logprobs):
            check_finite(logprobs.transpose(0, 1), clean.sample_ids, "The log-probabilities")
        return found

    @abstractmethod
    def read(
        self, backbone: Backbone, pair: PromptPair, cases: Sequence[PatchCase], ids: Tensor
    ) -> PatchReadings:
        """Run all cases on these prompts at once."""

    def prompts_at_once(self, backbone: Backbone, pair: PromptPair) -> int:
        """Return how many pairs to run at a time."""
        return len(pair.clean)

    def check(self, backbone: Backbone, pair: PromptPair) -> None:  # noqa: B027 - most need none
        """Check, once for each model, what the engine relies on."""


def find_patch_kinds(cases: Sequence[PatchCase]) -> list[PatchKind]:
    """Return the states that cases take, each once."""
    return list(dict.fromkeys(case.patch.kind for case in cases))
