"""The models of one domain, scored on the same resamples of the same test split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.statistics.answer_arrays import ABSENT, INVALID, make_answer_arrays
from lightning_mllm.statistics.missing import Integers
from lightning_mllm.statistics.seeds_and_samples import Measure, SeedResampler, SeedScores
from lightning_mllm.study.projection.cell_files import (
    CellFileAnswers,
    answers_in_cell_files,
    clip_answers_in_cell_files,
    probe_in_cell_files,
    probed_answers_in_cell_files,
    scores_in_cell_files,
)
from lightning_mllm.study.projection.cells import ProjectionFolder
from lightning_mllm.study.projection.study import ZERO_SHOT, ProjectionStudy

# the MLLM, a probe of its projection, a probe of its vision tower, CLIP with the class names, and
# what the probe of the projection gets right and the MLLM wrong, whose accuracy is a share
Kind = Literal["model", "richness", "image-only", "clip", "probe-only"]

_UNIFORM_DRAWS = 200


@dataclass(frozen=True)
class ComparedAnswerer:
    """A model or probe whose answers are scored.

    Attributes:
        kind: Whether it is the MLLM, a probe, or CLIP.
        policy: Which parts of the MLLM were trained.
        preset: How they were trained; empty for zero-shot.
    """

    kind: Kind
    policy: str = ZERO_SHOT
    preset: str = ""


@dataclass(frozen=True, eq=False)
class DomainComparison:
    """The scores of all models of a domain that come from one checkpoint.

    Attributes:
        checkpoint: Name of the checkpoint.
        domain: Name of the domain.
        seeds: Seeds that all models have.
        samples: Number of test samples, over all seeds if they differ in them.
        scores: Scores of each model with a finished cell.
        uniform: Scores of drawing a class uniformly.
    """

    checkpoint: str
    domain: str
    seeds: tuple[int, ...]
    samples: int
    scores: Mapping[ComparedAnswerer, Mapping[Measure, SeedScores]] = field(repr=False)
    uniform: Mapping[Measure, float]

    def get(self, kind: Kind, policy: str, preset: str, measure: Measure) -> SeedScores | None:
        """Return the score of a policy under a preset, or None without a finished cell.

        Zero-shot is the same under all presets. The baselines, image-only and CLIP, train nothing:
        their policy is zero-shot, too.
        """
        answerer = ComparedAnswerer(kind, policy, "" if policy == ZERO_SHOT else preset)
        found = self.scores.get(answerer)
        return None if found is None else found[measure]


def compare_domains(
    study: ProjectionStudy, done: Iterable[ProjectionFolder]
) -> list[DomainComparison]:
    """Score the finished cells, domain by domain.

    Where the grid is not finished, only those seeds count that are done in every model with a
    finished cell. A domain without such a seed is left out.

    Raises:
        DataError: A file of a finished cell is missing, or cells were tested on different samples.
    """
    groups: dict[tuple[str, str], list[ProjectionFolder]] = {}
    for folder in done:
        groups.setdefault((folder.cell.checkpoint, folder.cell.domain), []).append(folder)
    found = []
    for (checkpoint, domain), folders in groups.items():
        comparison = _compare_domain(study, checkpoint, domain, folders)
        if comparison is not None:
            found.append(comparison)
    return found


def _compare_domain(
    study: ProjectionStudy, checkpoint: str, domain: str, folders: Sequence[ProjectionFolder]
) -> DomainComparison | None:
    answers, seeds = _answers_of_domain(study, folders)
    if not seeds:
        return None
    halves: dict[ComparedAnswerer, int] = {}  # the fewest that a cell has; only of probes
    entries: dict[Any, Any] = {}  # what to_arrays takes
    for answerer, own in answers.items():
        entries[answerer] = [(each.targets, each.predicted) for each in own]
        fewest = min(len(each.halves) for each in own)
        if fewest:
            halves[answerer] = fewest
    for answerer, fewest in halves.items():
        own = answers[answerer]
        entries[answerer, "halves"] = [(each.targets, each.halves[:fewest]) for each in own]
    targets, predicted = make_answer_arrays(entries)
    fewest = min(halves.values(), default=1)
    resampler = SeedResampler(targets, len(seeds), fewest, study.resamples)
    scores = {}
    for answerer in answers:
        of_halves = predicted.get((answerer, "halves"))
        scores[answerer] = resampler.score(predicted[answerer], of_halves)
    for answerer in answers:
        model = ComparedAnswerer("model", answerer.policy, answerer.preset)
        if answerer.kind == "richness" and model in predicted:
            answered = predicted[model] == targets
            scores[replace(answerer, kind="probe-only")] = resampler.score(
                _without(predicted[answerer], answered),
                _without(predicted[answerer, "halves"], answered),
            )
    classes = scores_in_cell_files(folders[0])[study.scorer]["classes"]
    shape = (1, _UNIFORM_DRAWS, len(targets))
    guesses = np.random.default_rng(0).integers(0, classes, size=shape)
    return DomainComparison(
        checkpoint=checkpoint,
        domain=domain,
        seeds=tuple(seeds),
        samples=len(targets),
        scores=scores,
        uniform=resampler.observe(guesses),
    )


def _without(probed: Integers, answered: NDArray[np.bool_]) -> Integers:
    """Return a probe's answers, invalid where the model's is right.

    Args:
        probed: (seeds, repetitions, samples).
        answered: (seeds, 1, samples).
    """
    kept: Integers = np.where(answered & (probed != ABSENT), INVALID, probed)
    return kept


def _answers_of_domain(
    study: ProjectionStudy, folders: Sequence[ProjectionFolder]
) -> tuple[dict[ComparedAnswerer, list[CellFileAnswers]], list[int]]:
    """Return the answers of each model, one per seed that all models have, and these seeds."""
    found: dict[ComparedAnswerer, dict[int, CellFileAnswers]] = {}
    for folder in folders:
        for answerer, answers in answers_to_compare(study, folder).items():
            found.setdefault(answerer, {})[folder.cell.seed] = answers
    common = set(study.seeds).intersection(*found.values())
    seeds = [seed for seed in study.seeds if seed in common]
    of_seeds = {}
    for answerer, by_seed in found.items():
        of_seeds[answerer] = [by_seed[seed] for seed in seeds]
    return of_seeds, seeds


def answers_to_compare(
    study: ProjectionStudy, folder: ProjectionFolder
) -> dict[ComparedAnswerer, CellFileAnswers]:
    """Return the answers that a cell has, under each preset that it belongs to."""
    policy, presets = folder.cell.policy, folder.cell.presets
    answers: dict[ComparedAnswerer, CellFileAnswers] = {}
    model = answers_in_cell_files(folder, study.scorer)
    for preset in presets:
        answers[ComparedAnswerer("model", policy, preset)] = model
    richness = study.richness
    if richness is not None:
        probed = probed_answers_in_cell_files(folder, richness.point, richness.probe)
        for preset in presets:
            answers[ComparedAnswerer("richness", policy, preset)] = probed
        if policy == ZERO_SHOT and probe_in_cell_files(
            folder, richness.image_point, richness.probe
        ):
            of_tower = probed_answers_in_cell_files(folder, richness.image_point, richness.probe)
            answers[ComparedAnswerer("image-only")] = of_tower
    if policy == ZERO_SHOT:
        clip = clip_answers_in_cell_files(folder)
        if clip is not None:
            answers[ComparedAnswerer("clip")] = clip
    return answers
