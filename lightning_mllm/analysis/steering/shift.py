"""How much of what fine-tuning has gained does a shift vector give back to the model before it?

A shift vector is mean(state after) - mean(state before) over samples of a class, here a kind of
question, read from other pictures (Khayatan et al., 2025, arXiv 2501.03012). It is added to the
states of the model before fine-tuning, whose answers are compared with those of the fine-tuned
model, on the same questions. Beside it are the mean shift of the other classes, and random vectors
of equal norm.

Classes that are right answers work too, but then the vector of a question says its answer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_mllm.analysis.core.per_question import PerQuestionAnswer, QuestionAnalysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.core.windows import Window, Windows
from lightning_mllm.analysis.forward.prompts import Prompts
from lightning_mllm.analysis.steering.cases import SteeringCase, read_steered
from lightning_mllm.analysis.steering.class_means import (
    ClassMeans,
    shift_vector,
    stack_class_states,
)
from lightning_mllm.analysis.steering.classes import SampleClasses
from lightning_mllm.analysis.steering.grid import SteeringGrid
from lightning_mllm.analysis.steering.rows import ShiftRow
from lightning_mllm.analysis.steering.shift_summary import summarise_shifts
from lightning_mllm.analysis.steering.steer import Steer, find_steer_positions
from lightning_mllm.analysis.steering.vector import (
    SteeringVector,
    check_vector_weights,
    draw_vectors,
)
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.evaluation import Match
from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import attention_of_layers, decoder_layers
from lightning_mllm.progress import track
from lightning_mllm.statistics.picture_bootstrap import Bootstrap
from lightning_mllm.types import Table

logger = logging.getLogger(__name__)


class ShiftSweep(QuestionAnalysis[ShiftRow]):
    """Adds shift vectors to a model before fine-tuning, and counts how many more answers are right.

    Questions of classes that have no shift are not asked. Those about a picture from which shifts
    were read are left out, and counted.

    Args:
        before: Folder of a `MeanStates` of the model that is analysed.
        after: Folder of the same `MeanStates` of the fine-tuned model.
        fine_tuned: Checkpoint of the fine-tuned model, a hub id or a folder; it answers the same
            questions.
        steers: At which segments shifts were read and are added: "last", or "image+text" for all
            positions.
        windows: In front of which layers they are added; by default of each alone.
        scales: What they are multiplied by.
        random_vectors: How many random vectors of equal norm they are compared with. Each question
            is tried with 4 of them, in turn.
        seed: Seed of the random vectors.
        match: When an answer is right in the column `correct`, see `ExactMatch`.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default
            all.
        bootstrap: How intervals are drawn.
        label: Name of the analysis and its folder, where one run has several of its class.

    Raises:
        ConfigError: The grid is empty or names something twice.
    """

    row_type = ShiftRow
    default_name: ClassVar[str] = "shift_sweep"

    def __init__(
        self,
        *,
        before: str,
        after: str,
        fine_tuned: str,
        steers: Sequence[str] = ("last",),
        windows: Windows = Windows(width=1),
        scales: Sequence[float] = (1.0,),
        random_vectors: int = 20,
        seed: int = 0,
        match: Match = "normalised",
        kind_depth: int | None = None,
        bootstrap: Bootstrap = Bootstrap(),
        label: str = "",
    ) -> None:
        super().__init__(
            correct_only=False,
            match=match,
            kind_depth=kind_depth,
            bootstrap=bootstrap,
            label=label,
        )
        self.before, self.after, self.fine_tuned = before, after, fine_tuned
        self.grid = SteeringGrid.of("ShiftSweep", steers, windows, scales, random_vectors, seed)
        self._checked: Backbone | None = None
        self._tuned: Backbone | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the rows; shifts are identified by their contents."""
        before, after = self.means
        return {
            "before": {"weights": before.weights, "sums": before.digest},
            "after": {"weights": after.weights, "sums": after.digest},
            "by": before.settings["by"],
            **self.grid.settings,
            **self.shared_settings,
        }

    @cached_property
    def means(self) -> tuple[ClassMeans, ClassMeans]:
        """The states before and after fine-tuning."""
        before, after = ClassMeans.load(self.before), ClassMeans.load(self.after)
        if before.settings["by"] == "answer":
            logger.warning(
                "%s: the shifts are of right answers, so each question gets a vector that says its "
                "answer. Read states with MeanStates.by: kind to see what fine-tuning has taught.",
                self.name,
            )
        return before, after

    @cached_property
    def shifts(self) -> dict[str, dict[str, SteeringVector]]:
        """Where they were read -> class -> shift."""
        before, after = self.means
        found: dict[str, dict[str, SteeringVector]] = {}
        for at in dict.fromkeys(steer.read_at for steer in self.grid.steers):
            before.check_has(before.classes[0], at)
            names = [name for name in before.classes if (at, name) in before.sums]
            found[at] = {name: shift_vector(before, after, name, at) for name in names}
        return found

    def check_model(self, backbone: Backbone) -> None:
        """Refuse a model that is not the one before fine-tuning."""
        if self._checked is not backbone:
            for shifts in self.shifts.values():
                next(iter(shifts.values())).check_fits(backbone)
            self.grid.cells(len(decoder_layers(backbone)))
            self._load(backbone)
        self._checked = backbone

    def update(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Measure the questions of a batch whose classes have a shift at each place."""
        asked = [row for row, name in enumerate(self._classes(batch)) if self._has_shift(name)]
        if asked:
            super().update(backbone, batch.take(asked))

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[PerQuestionAnswer]
    ) -> list[Sequence[ShiftRow]]:
        """Add the shifts in all cells of the grid, each beside its controls."""
        pictures = self.means[0].pictures
        kept, rows = [], list[Sequence[ShiftRow]]()
        for row, question in enumerate(questions):
            is_read = question.picture in pictures
            rows.append([self.left_out(question)] if is_read else [])
            kept += [] if is_read else [row]
        if kept:
            asked = [questions[row] for row in kept]
            for row, own in zip(kept, self._steer(backbone, batch.take(kept), asked), strict=True):
                rows[row] = own
        return rows

    def left_out(self, question: PerQuestionAnswer) -> ShiftRow:
        """Return the row of a question about a picture that was read."""
        return ShiftRow(**question.columns, measured=False, picture_read=True)

    def summarise(self, table: Table, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the numbers per kind, steer, layers and scale."""
        return summarise_shifts(
            self.name, table, settings, kind_depth=self.kind_depth, bootstrap=self.bootstrap
        )

    def explain_nothing(self) -> str:
        """Return why no question was measured."""
        return (
            f"{self.name} has measured none of {len(self.rows.done)} questions: none is of a class "
            "with a shift, or the shifts were read from their pictures. Ask about other pictures "
            "(another split) of the classes of MeanStates."
        )

    def reset(self) -> None:
        """Forget all rows, and the fine-tuned model."""
        super().reset()
        self._tuned = self._checked = None

    def _load(self, backbone: Backbone) -> Backbone:
        """Return the fine-tuned model, beside the other one."""
        if self._tuned is None:
            tuned = Backbone.from_pretrained(
                self.fine_tuned,
                dtype=backbone.model.dtype,
                attention=attention_of_layers(backbone),  # type: ignore[arg-type]
            )
            check_vector_weights(self.means[1].weights, tuned, f"{self.after} with its states")
            tuned.model.to(backbone.model.device)  # type: ignore[arg-type]
            self._tuned = tuned
        return self._tuned

    def _classes(self, batch: MultimodalBatch) -> tuple[str, ...]:
        settings = self.means[0].settings
        own = {"by": settings["by"], "kind_depth": settings["kind_depth"]}
        return SampleClasses.of(batch, self.tokenizer, **own).names

    def _has_shift(self, name: str) -> bool:
        return all(name in shifts for shifts in self.shifts.values())

    def _steer(
        self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[PerQuestionAnswer]
    ) -> list[list[ShiftRow]]:
        """Return the rows of questions, one per cell of the grid."""
        prompts = batch.to(backbone.model.device).prompts()
        cells = self.grid.cells(len(decoder_layers(backbone)))
        expected = torch.tensor(SampleClasses.of(batch, self.tokenizer).first_tokens)
        cases = self._make_cases(prompts, self._classes(batch), cells)
        right = torch.zeros(len(cases) + 1, len(batch), dtype=torch.float64)  # the last: clean
        read = read_steered(backbone, prompts, cases)
        for number, logits in track(read, "Shifts of a batch", total=len(cases) + 1):
            check_finite(logits, batch.sample_ids, "The model's logits")
            right[number] = (logits.argmax(1).cpu() == expected).double()
        tuned = self._load(backbone)
        logits, _ = Prompts.of(tuned, batch).forward(tuned)
        after = (logits.argmax(1).cpu() == expected).double()
        step = self.grid.tried + 2
        rows: list[list[ShiftRow]] = [[] for _ in questions]
        for number, (steer, window, scale) in enumerate(cells):
            own = number * step
            columns = {
                "size": cases[own].positions.sum(1).cpu(),
                "before": right[-1],
                "after": after,
                "shifted": right[own],
                "other": right[own + 1],
                "random": right[own + 2 : own + step].mean(0),
            }
            if len(self.shifts[steer.read_at]) == 1:
                columns["other"] = torch.full_like(after, torch.nan)
            cell: Any = {"steer": str(steer), "scale": scale}
            cell |= {"start": window.start, "stop": window.stop}
            for row, question in enumerate(questions):
                numbers: Any = {name: column[row].item() for name, column in columns.items()}
                rows[row].append(ShiftRow(**question.columns, **cell, **numbers))
        return rows

    def _make_cases(
        self,
        prompts: MultimodalBatch,
        classes: Sequence[str],
        cells: Sequence[tuple[Steer, Window, float]],
    ) -> list[SteeringCase]:
        """Return the cases of all cells: the shift, that of other classes, and the random ones."""
        device, count = prompts.input_ids.device, self.grid.random_vectors
        chosen = 2 + self.grid.choose_random(prompts.sample_ids).to(device)
        vectors: dict[str, Tensor] = {}
        which: dict[str, list[Tensor]] = {}
        for at, shifts in self.shifts.items():
            own = stack_class_states([*shifts.values()])  # (classes, layers + 1, width)
            others = (own.sum(0) - own) / max(1, len(own) - 1)
            random = draw_vectors(own, count, self.grid.seed)
            vectors[at] = torch.cat([own[None], others[None], random]).flatten(0, 1).to(device)
            named = torch.tensor([[*shifts].index(name) for name in classes], device=device)
            numbers = (torch.zeros_like(named), torch.ones_like(named), *chosen)
            which[at] = [len(own) * number + named for number in numbers]
        cases = []
        for steer, window, scale in cells:
            positions, at = find_steer_positions(prompts.spans, steer.at), steer.read_at
            for each in which[at]:
                cases.append(SteeringCase(positions, window, vectors[at], each, scale))
        return cases
