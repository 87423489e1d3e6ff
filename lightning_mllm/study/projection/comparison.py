"""The models of one domain, scored on the same resamples of the same test split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lightning_mllm.statistics.answer_arrays import to_arrays
from lightning_mllm.statistics.seeds_and_samples import Measure, Resampler, Scores
from lightning_mllm.study.projection.cell_files import (
    Answers,
    answers_of,
    clip_answers_of,
    has_probe,
    probed_answers_of,
    scores_of_projection_cell,
)
from lightning_mllm.study.projection.cells import ProjectionFolder
from lightning_mllm.study.projection.study import ZERO_SHOT, Study

# the MLLM, a probe of its projection, a probe of its vision tower, CLIP with the class names
Kind = Literal["model", "richness", "image-only", "clip"]

_UNIFORM_DRAWS = 200


@dataclass(frozen=True)
class Answerer:
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
    scores: Mapping[Answerer, Mapping[Measure, Scores]] = field(repr=False)
    uniform: Mapping[Measure, float]

    def get(self, kind: Kind, policy: str, preset: str, measure: Measure) -> Scores | None:
        """Return the score of a policy under a preset, or None without a finished cell.

        Zero-shot is the same under all presets. The baselines, image-only and CLIP, train nothing:
        their policy is zero-shot, too.
        """
        answerer = Answerer(kind, policy, "" if policy == ZERO_SHOT else preset)
        found = self.scores.get(answerer)
        return None if found is None else found[measure]


def compare(study: Study, done: Iterable[ProjectionFolder]) -> list[DomainComparison]:
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
    study: Study, checkpoint: str, domain: str, folders: Sequence[ProjectionFolder]
) -> DomainComparison | None:
    answers, seeds = _answers_of_domain(study, folders)
    if not seeds:
        return None
    halves: dict[Answerer, int] = {}  # the fewest that a cell has; only of probes
    entries: dict[Any, Any] = {}  # what to_arrays takes
    for answerer, own in answers.items():
        entries[answerer] = [(each.targets, each.predicted) for each in own]
        fewest = min(len(each.halves) for each in own)
        if fewest:
            halves[answerer] = fewest
    for answerer, fewest in halves.items():
        own = answers[answerer]
        entries[answerer, "halves"] = [(each.targets, each.halves[:fewest]) for each in own]
    targets, predicted = to_arrays(entries)
    fewest = min(halves.values(), default=1)
    resampler = Resampler(targets, len(seeds), fewest, study.resamples)
    scores = {}
    for answerer in answers:
        of_halves = predicted.get((answerer, "halves"))
        scores[answerer] = resampler.score(predicted[answerer], of_halves)
    classes = scores_of_projection_cell(folders[0])[study.scorer]["classes"]
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


def _answers_of_domain(
    study: Study, folders: Sequence[ProjectionFolder]
) -> tuple[dict[Answerer, list[Answers]], list[int]]:
    """Return the answers of each model, one per seed that all models have, and these seeds."""
    found: dict[Answerer, dict[int, Answers]] = {}
    for folder in folders:
        for answerer, answers in answers_of_cell(study, folder).items():
            found.setdefault(answerer, {})[folder.cell.seed] = answers
    common = set(study.seeds).intersection(*found.values())
    seeds = [seed for seed in study.seeds if seed in common]
    of_seeds = {}
    for answerer, by_seed in found.items():
        of_seeds[answerer] = [by_seed[seed] for seed in seeds]
    return of_seeds, seeds


def answers_of_cell(study: Study, folder: ProjectionFolder) -> dict[Answerer, Answers]:
    """Return the answers that a cell has, under each preset that it belongs to."""
    policy, presets = folder.cell.policy, folder.cell.presets
    answers: dict[Answerer, Answers] = {}
    model = answers_of(folder, study.scorer)
    for preset in presets:
        answers[Answerer("model", policy, preset)] = model
    richness = study.richness
    if richness is not None:
        probed = probed_answers_of(folder, richness.point, richness.probe)
        for preset in presets:
            answers[Answerer("richness", policy, preset)] = probed
        if policy == ZERO_SHOT and has_probe(folder, richness.image_point, richness.probe):
            of_tower = probed_answers_of(folder, richness.image_point, richness.probe)
            answers[Answerer("image-only")] = of_tower
    if policy == ZERO_SHOT:
        clip = clip_answers_of(folder)
        if clip is not None:
            answers[Answerer("clip")] = clip
    return answers
