"""Does a vector between two classes turn answers of the one into the other?

The vector is mean(target) - mean(source) of states that `MeanStates` has read from other pictures.
It is added to questions whose right answer is the source, in front of layers, at some positions,
times a scale. Beside it are random vectors of equal norm; another control is a `steer` that adds
the same vector elsewhere, such as "image object->image random".

D is the logit with which the target's answer begins, minus that of the source's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_mllm.analysis.core.per_question import PerQuestionAnswer, QuestionAnalysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.core.windows import Window, Windows
from lightning_mllm.analysis.steering.cases import SteeringCase, read_steered
from lightning_mllm.analysis.steering.class_means import ClassMeans
from lightning_mllm.analysis.steering.classes import SampleClasses
from lightning_mllm.analysis.steering.grid import SteeringGrid
from lightning_mllm.analysis.steering.rows import SteeringRow
from lightning_mllm.analysis.steering.steer import Steer, find_steer_positions
from lightning_mllm.analysis.steering.summary import summarise_steering
from lightning_mllm.analysis.steering.vector import SteeringVector, draw_vectors
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import Match
from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.progress import track
from lightning_mllm.statistics.picture_bootstrap import Bootstrap
from lightning_mllm.types import Table


class SteeringSweep(QuestionAnalysis[SteeringRow]):
    """Adds the vector from one class to another, and counts which answers turn.

    Only questions count whose right answer is the source. Those about a picture that the vector was
    read from are left out, and counted.

    Args:
        states: Folder of a `MeanStates` of this model, with both classes.
        source: Class that the vector leads from, as `MeanStates` names it.
        target: Class that the vector leads to.
        steers: At which segments the vector was read and is added: "image object", or "image
            object->last" to add it elsewhere.
        windows: In front of which layers it is added; by default of each alone.
        scales: What it is multiplied by.
        random_vectors: How many random vectors of equal norm it is compared with. Each question is
            tried with 4 of them, in turn.
        seed: Seed of the random vectors.
        correct_only: Whether only questions count that the model answers right without a vector.
        match: When an answer is right, see `ExactMatch`.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default
            all.
        bootstrap: How intervals are drawn.
        label: Name of the analysis and its folder, where one run has several of its class.

    Raises:
        ConfigError: The grid is empty or names something twice, or source and target are one.
    """

    row_type = SteeringRow
    default_name: ClassVar[str] = "steering_sweep"

    def __init__(
        self,
        *,
        states: str,
        source: str,
        target: str,
        steers: Sequence[str] = ("image object", "image object->image random"),
        windows: Windows = Windows(width=1),
        scales: Sequence[float] = (1.0,),
        random_vectors: int = 20,
        seed: int = 0,
        correct_only: bool = True,
        match: Match = "normalised",
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
        if source == target:
            raise ConfigError(
                f"SteeringSweep leads from {source!r} to itself. Name another target."
            )
        self.states, self.source, self.target = states, source, target
        self.grid = SteeringGrid.of("SteeringSweep", steers, windows, scales, random_vectors, seed)
        self._checked: Backbone | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the rows; vectors are identified by their contents."""
        return {
            "source": self.source,
            "target": self.target,
            "vectors": {at: vector.digest for at, vector in self.vectors.items()},
            **self.grid.settings,
            **self.shared_settings,
        }

    @cached_property
    def means(self) -> ClassMeans:
        """The states that vectors are made of.

        Raises:
            ConfigError: They are of kinds of questions, not of answers, or both classes' answers
                begin with the same token, or those of one with several.
        """
        means = ClassMeans.load(self.states)
        if means.settings["by"] != "answer":
            raise ConfigError(
                f"{self.states} has the states of kinds of questions, so it is not known which "
                "answers they stand for. Read them with MeanStates.by: answer."
            )
        for steer in self.grid.steers:
            for name in (self.source, self.target):
                means.check_has(name, steer.read_at)
        if means.first_token(self.source) == means.first_token(self.target):
            raise ConfigError(
                f"The answers {self.source!r} and {self.target!r} begin with the same token, so "
                "the first token does not tell which is said. Choose other classes."
            )
        return means

    @cached_property
    def vectors(self) -> dict[str, SteeringVector]:
        """Where it was read -> the vector."""
        places = dict.fromkeys(steer.read_at for steer in self.grid.steers)
        return {at: self.means.difference(self.target, self.source, at) for at in places}

    def check_model(self, backbone: Backbone) -> None:
        """Refuse a model whose states were not read."""
        if self._checked is not backbone:
            for vector in self.vectors.values():
                vector.check_fits(backbone)
            self.grid.cells(len(decoder_layers(backbone)))
        self._checked = backbone

    def update(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Measure the questions of a batch whose right answer is the source."""
        names = SampleClasses.of(batch, self.tokenizer).names
        asked = [row for row, name in enumerate(names) if name == self.source]
        if asked:
            super().update(backbone, batch.take(asked))

    def measure(
        self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[PerQuestionAnswer]
    ) -> list[Sequence[SteeringRow]]:
        """Add the vectors in all cells of the grid, each beside its random ones."""
        kept, rows = [], list[Sequence[SteeringRow]]()
        for row, question in enumerate(questions):
            is_read = question.picture in self.means.pictures
            rows.append([self._leave_out(question, is_read)] if is_read else [])
            kept += [] if is_read else [row]
        if kept:
            asked = [questions[row] for row in kept]
            measured = self._steer(backbone, batch.take(kept), asked)
            for row, own in zip(kept, measured, strict=True):
                rows[row] = own
        return rows

    def left_out(self, question: PerQuestionAnswer) -> SteeringRow:
        """Return the row of a question that the model answers wrongly."""
        return self._leave_out(question, question.picture in self.means.pictures)

    def summarise(self, table: Table, settings: Mapping[str, Any]) -> AnalysisResult:
        """Return the numbers per kind, steer, layers and scale."""
        vectors = list(self.vectors.values())
        return summarise_steering(
            self.name,
            table,
            settings,
            vectors,
            kind_depth=self.kind_depth,
            bootstrap=self.bootstrap,
        )

    def explain_nothing(self) -> str:
        """Return why no question was measured."""
        return (
            f"{self.name} has measured none of {len(self.rows.done)} questions whose answer is "
            f"{self.source!r}: the model answers them wrongly, or the vector was read from their "
            "pictures. Ask about other pictures (another split), or set correct_only to false "
            "(--analysis.correct_only false)."
        )

    def _leave_out(self, question: PerQuestionAnswer, is_read: bool) -> SteeringRow:
        return SteeringRow(**question.columns, measured=False, picture_read=is_read)

    def _steer(
        self, backbone: Backbone, batch: MultimodalBatch, questions: Sequence[PerQuestionAnswer]
    ) -> list[list[SteeringRow]]:
        """Return the rows of questions, one per cell of the grid."""
        prompts = batch.to(backbone.model.device).prompts()
        cells = self.grid.cells(len(decoder_layers(backbone)))
        cases = self._make_cases(prompts, cells)
        ids = torch.tensor([self.means.first_token(each) for each in (self.target, self.source)])
        gaps = torch.zeros(len(cases) + 1, len(batch), dtype=torch.float64)  # the last: clean
        says = torch.zeros(2, len(cases) + 1, len(batch), dtype=torch.float64)
        read = read_steered(backbone, prompts, cases)
        for number, logits in track(read, "Vectors of a batch", total=len(cases) + 1):
            check_finite(logits, batch.sample_ids, "The model's logits")
            target, source = logits[:, ids.to(logits.device)].double().cpu().unbind(1)
            gaps[number] = target - source
            says[:, number] = (logits.argmax(1).cpu() == ids[:, None]).double()
        step = self.grid.tried + 1
        rows: list[list[SteeringRow]] = [[] for _ in questions]
        for number, (steer, window, scale) in enumerate(cells):
            own, others = number * step, slice(number * step + 1, (number + 1) * step)
            columns = {
                "size": cases[own].positions.sum(1).cpu(),
                "before": gaps[-1],
                "after": gaps[own],
                "target": says[0, own],
                "source": says[1, own],
                "random_after": gaps[others].mean(0),
                "random_target": says[0, others].mean(0),
                "random_source": says[1, others].mean(0),
                "random_as_strong": (gaps[others] >= gaps[own]).double().mean(0),
            }
            cell: Any = {"steer": str(steer), "scale": scale}
            cell |= {"start": window.start, "stop": window.stop}
            for row, question in enumerate(questions):
                numbers: Any = {name: column[row].item() for name, column in columns.items()}
                rows[row].append(SteeringRow(**question.columns, **cell, **numbers))
        return rows

    def _make_cases(
        self, prompts: MultimodalBatch, cells: Sequence[tuple[Steer, Window, float]]
    ) -> list[SteeringCase]:
        """Return the cases of all cells: the vector, and after it the random ones."""
        device = prompts.input_ids.device
        vectors: dict[str, Tensor] = {}
        for at, vector in self.vectors.items():
            random = draw_vectors(vector.states, self.grid.random_vectors, self.grid.seed)
            vectors[at] = torch.cat([vector.states[None], random]).to(device)
        chosen = 1 + self.grid.choose_random(prompts.sample_ids).to(device)
        cases = []
        for steer, window, scale in cells:
            positions = find_steer_positions(prompts.spans, steer.at)
            for which in (torch.zeros_like(chosen[0]), *chosen):
                cases.append(SteeringCase(positions, window, vectors[steer.read_at], which, scale))
        return cases
