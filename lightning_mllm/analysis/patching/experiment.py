"""Activation patching between the two samples of a pair: which states carry what they differ in.

Two prompts differ in one thing and have different right answers. In a run of one, the states of the
other take the place of its own, at some positions and in some layers, and the difference D of the
two answers' logits is read again (Zhang and Nanda, arXiv 2309.16042; Heimersheim and Nanda,
arXiv 2404.15255).

- Denoising puts clean states into the corrupted run: what of D comes back, (D_patched -
  D_corrupted) / (D_clean - D_corrupted), is what these states suffice for.
- Noising puts corrupted states into the clean run: what of D is lost, (D_clean - D_patched) /
  (D_clean - D_corrupted), is what they are needed for. Of two redundant ways each suffices, and
  neither is needed.

Over pairs it is the ratio of the means, since single ratios have no bounds. Only pairs count of
which the model answers both questions right. What is found is what states carry at this place, and
not where something is stored, or best edited.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_mllm.analysis.core.per_question import AnsweredAnalysis, PerQuestionAnswer
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.core.windows import Windows
from lightning_mllm.analysis.patching.attribution import estimate_patches
from lightning_mllm.analysis.patching.edits import (
    PatchCase,
    check_contrast_windows,
    find_patch_window,
)
from lightning_mllm.analysis.patching.engine.base import PatchEngine
from lightning_mllm.analysis.patching.engine.suffix import PatchEngineName, choose_patch_engine
from lightning_mllm.analysis.patching.pairing import PairFinder, SamplePairs
from lightning_mllm.analysis.patching.patch import Patch
from lightning_mllm.analysis.patching.rows import (
    ALIKE,
    WRONG,
    PatchRow,
    find_first_token,
    make_left_out_row,
    make_patch_rows,
)
from lightning_mllm.analysis.patching.source import check_patch_model
from lightning_mllm.analysis.patching.summary import summarise_patching
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import Match
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.statistics.picture_bootstrap import Bootstrap
from lightning_mllm.types import Sample, Table

PATCHES = (
    "image object @ residual",
    "image random @ residual",  # the control: as many of the other patches
    "image other @ residual",
    "image @ residual",  # the ceiling of what is swapped in a picture
    "question @ residual",
    "suffix @ residual",
    "last @ residual",
)
CONTRASTS = (("image object @ residual", "image random @ residual"),)


class ActivationPatching(AnsweredAnalysis[PatchRow]):
    """Puts states of one sample of a pair into the run of the other, and reads the answers' logits.

    Args:
        patches: What is patched, as "image object @ residual", "last @ attention", "question @ ffn"
            or "last @ head[3.2,4.0]" (layer.head); "swapped" are the positions at which the two
            prompts have different tokens.
        windows: In which layers it is patched, in front of each of them for residual states. Heads
            have layers of their own.
        engine: `suffix` computes only what can change, `reference` runs the whole model for each
            case. `auto` takes `suffix` where it is exact, else `reference`.
        memory_gib: How many GiB the engine may use besides the weights; by default half of what is
            free.
        attribution: Whether each effect is also estimated from one gradient per direction, as a
            filter for larger sweeps; the error of the estimates stands beside them.
        correct_only: Whether only pairs count of which the model answers both questions right.
        match: When an answer is right. `normalised` ignores case, quotes, full stops and blanks;
            `paper` ignores only case and the blanks around the answer.
        contrasts: Pairs of patches whose difference is reported with its interval, on the same
            pairs of samples for both; by default the object's patches and as many others.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default
            all.
        bootstrap: How intervals are drawn.
        label: A name of your own for this analysis and its folder.

    Raises:
        ConfigError: A patch can't be read, is there twice, or is in a contrast and nowhere else.
    """

    row_type = PatchRow
    default_name: ClassVar[str] = "patching"

    def __init__(
        self,
        *,
        patches: Sequence[str] = PATCHES,
        windows: Windows = Windows(width=1),
        engine: PatchEngineName = "auto",
        memory_gib: float | None = None,
        attribution: bool = False,
        correct_only: bool = True,
        match: Match = "normalised",
        contrasts: Sequence[tuple[str, str]] | None = None,
        kind_depth: int | None = None,
        bootstrap: Bootstrap = Bootstrap(),
        label: str = "",
    ) -> None:
        super().__init__(
            correct_only=correct_only,
            match=match,
            kind_depth=kind_depth,
            bootstrap=bootstrap,
            label=label,
        )
        self.patches = tuple(Patch.parse(patch) for patch in patches)
        names = [str(patch) for patch in self.patches]
        if not names or len(set(names)) < len(names):
            raise ConfigError(
                f"ActivationPatching needs patches, each once; found {', '.join(names) or 'none'}."
            )
        if contrasts is None:
            contrasts = [pair for pair in CONTRASTS if {*pair} <= {*names}]
        self.contrasts = [
            (str(Patch.parse(ours)), str(Patch.parse(theirs))) for ours, theirs in contrasts
        ]
        if lacking := sorted({*chain.from_iterable(self.contrasts)} - {*names}):
            raise ConfigError(
                f"A contrast names {lacking[0]!r}, which is not among the patches. Add it to them."
            )
        self.windows, self.engine, self.memory_gib = windows, engine, memory_gib
        self.attribution = attribution
        self._engine: PatchEngine | None = None
        self._finder = PairFinder()

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the rows."""
        return {
            "patches": [str(patch) for patch in self.patches],
            "windows": asdict(self.windows),
            "engine": self.engine,
            "attribution": self.attribution,
            **self.shared_settings,
        }

    def reset(self) -> None:
        """Forget all rows, samples without their partner, and the engine."""
        super().reset()
        self._engine = None
        self._finder.forget()

    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse samples that make no pairs, and pairs without the kind that tells the answers."""
        samples = [*samples]
        self._finder.check(samples, self.name)
        named = {sample.partner for sample in samples}
        for sample in samples:
            in_pair = sample.partner is not None or sample.id in named
            if in_pair and sample.kind is None:
                raise self._kindless(sample.id)

    def check_model(self, backbone: Backbone) -> None:
        """Refuse a model whose states can't be patched, and contrasts that compare nothing."""
        check_patch_model(backbone, list(dict.fromkeys(patch.kind for patch in self.patches)))
        if self.contrasts:
            check_contrast_windows(self.contrasts, self._make_cases(len(decoder_layers(backbone))))

    @torch.no_grad()
    def update(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Measure the pairs that are complete with a batch, and have no rows yet.

        Out of memory, fewer of them are measured at a time.
        """
        self.check_model(backbone)
        for pairs in self._finder.find(batch, self.rows.done):

            def take_in(rows: Sequence[int], pairs: SamplePairs = pairs) -> None:
                self._take_in(backbone, pairs.take(rows))

            self._pieces.run(range(len(pairs)), len(pairs), take_in)

    def settle(self) -> None:
        """Refuse to end while samples wait for their partner.

        Raises:
            ConfigError: There are such.
        """
        if waiting := self._finder.waiting:
            raise ConfigError(
                f"{self.name}: the partners of {len(waiting)} samples, of {waiting[0]!r} for one, "
                "did not come to this process. Use one process, or data in which the two samples "
                "of a pair follow each other and an eval_batch_size of twice as many for each."
            )

    def summarise(self, table: Table, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the numbers per kind, patch, window and direction."""
        return summarise_patching(
            table,
            name=self.name,
            contrasts=self.contrasts,
            kind_depth=self.kind_depth,
            bootstrap=self.bootstrap,
            settings=settings,
        )

    def explain_nothing(self) -> str:
        """Return why no pair counts, and what can be done."""
        return (
            f"{self.name} has measured none of {len(self.rows.done)} pairs, because the model "
            "answers no pair right, or both answers of each begin with the same token. Train the "
            "model longer, take answers of other words, or set correct_only to false "
            "(--analysis.correct_only false)."
        )

    def _take_in(self, backbone: Backbone, pairs: SamplePairs) -> None:
        """Measure pairs; rows are written when all have been measured."""
        ours, theirs = (self._ask(backbone, each) for each in (pairs.clean, pairs.corrupted))
        questions = list(zip(ours, theirs, strict=True))
        ids = torch.tensor(self._find_tokens(pairs, questions))
        found: dict[str, list[PatchRow]] = {}
        kept = []
        for row, (clean, corrupted) in enumerate(questions):
            reason = ALIKE if ids[row, 0] == ids[row, 1] else ""
            if self.correct_only and not (clean.correct and corrupted.correct):
                reason = WRONG
            if reason:
                found[clean.sample_id] = [make_left_out_row(clean, corrupted, reason)]
            else:
                kept.append(row)
        if kept:
            asked = [questions[row] for row in kept]
            for rows in self._measure(backbone, pairs.take(kept), asked, ids[kept]):
                found[rows[0].sample_id] = rows
        self.rows.append({clean.sample_id: found[clean.sample_id] for clean in ours})

    def _measure(
        self,
        backbone: Backbone,
        pairs: SamplePairs,
        questions: Sequence[tuple[PerQuestionAnswer, PerQuestionAnswer]],
        ids: Tensor,
    ) -> list[list[PatchRow]]:
        """Run all patches in all windows, in both directions."""
        cases = self._make_cases(len(decoder_layers(backbone)))
        if self._engine is None:
            memory = None if self.memory_gib is None else int(self.memory_gib * 2**30)
            self._engine = choose_patch_engine(self.engine, memory)
        readings = self._engine.run(backbone, pairs.clean, pairs.corrupted, cases, ids)
        estimates = None
        if self.attribution:
            estimates = estimate_patches(backbone, pairs.clean, pairs.corrupted, cases, ids)
        return make_patch_rows(
            questions, pairs.clean, cases, readings=readings, ids=ids, estimates=estimates
        )

    def _make_cases(self, depth: int) -> list[PatchCase]:
        cases = []
        for patch in self.patches:
            own = [find_patch_window(patch, None)] if patch.heads else self.windows.of(depth)
            cases += [PatchCase(patch, window) for window in dict.fromkeys(own)]
        return cases

    def _find_tokens(
        self, pairs: SamplePairs, questions: Sequence[tuple[PerQuestionAnswer, PerQuestionAnswer]]
    ) -> list[list[int]]:
        """Return the tokens with which the two answers of each pair begin."""
        answers = zip(pairs.clean.answers, pairs.corrupted.answers, strict=True)
        found = []
        for asked, forms in zip(questions, answers, strict=True):
            tokens = []
            for question, own in zip(asked, forms, strict=True):
                if own is None:
                    raise self._kindless(question.sample_id)
                tokens.append(find_first_token(question, own))
            found.append(tokens)
        return found

    def _kindless(self, sample_id: str) -> ConfigError:
        return ConfigError(
            f"{self.name} reads the logits of the right answers, but sample {sample_id!r} has no "
            "kind, so its answer is not known. Give the samples a kind of question."
        )
