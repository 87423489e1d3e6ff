"""The models of one domain, scored on the same resamples of the same test split, so that they can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lightning_mllm.statistics.answer_arrays import to_arrays
from lightning_mllm.statistics.seeds_and_samples import Measure, Resampler, Scores
from lightning_mllm.study.projection.cell_files import (
    Answers,
    answers_of,
    clip_answers_of,
    has_probe,
    probed_answers_of,
    scores_of,
)
from lightning_mllm.study.projection.cells import CellFolder
from lightning_mllm.study.projection.study import ZERO_SHOT, Study

# who answered: the MLLM, a probe of its projection, a probe of its vision tower, CLIP with the names of the classes
Kind = Literal["model", "richness", "image-only", "clip"]

_UNIFORM_DRAWS = 200


@dataclass(frozen=True)
class Who:
    """What was scored.

    Attributes:
        kind: Who answered.
        policy: What was trained.
        preset: How; empty for zero-shot.
    """

    kind: Kind
    policy: str = ZERO_SHOT
    preset: str = ""


@dataclass(frozen=True, eq=False)
class Comparison:
    """The scores of all models of a domain that come from one checkpoint.

    Attributes:
        checkpoint: Its name.
        domain: Name of the domain.
        seeds: Those that all models have.
        samples: Number of test samples, over all seeds if they differ in them.
        scores: Of each model; those without a finished cell are left out.
        uniform: Of drawing a class uniformly.
    """

    checkpoint: str
    domain: str
    seeds: tuple[int, ...]
    samples: int
    scores: Mapping[Who, Mapping[Measure, Scores]] = field(repr=False)
    uniform: Mapping[Measure, float]

    def get(self, kind: Kind, policy: str, preset: str, measure: Measure) -> Scores | None:
        """Return the score of a policy under a preset, if it is there; zero-shot is the same under all presets.

        The baselines, image-only and CLIP, train nothing: their policy is zero-shot, too.
        """
        found = self.scores.get(Who(kind, policy, "" if policy == ZERO_SHOT else preset))
        return None if found is None else found[measure]


def compare(study: Study, done: Iterable[CellFolder]) -> list[Comparison]:
    """Score the finished cells, domain by domain.

    Where the grid is not finished only those seeds count that are done in every model with a finished cell; a domain
    without such a seed is left out.

    Raises:
        DataError: A file of a finished cell is missing, or cells were tested on different samples.
    """
    groups: dict[tuple[str, str], list[CellFolder]] = {}
    for folder in done:
        groups.setdefault((folder.cell.checkpoint, folder.cell.domain), []).append(folder)
    compared = (_compare_domain(study, *names, folders) for names, folders in groups.items())
    return [comparison for comparison in compared if comparison is not None]


def _compare_domain(study: Study, checkpoint: str, domain: str, folders: Sequence[CellFolder]) -> Comparison | None:
    answers: dict[Who, dict[int, Answers]] = {}
    for folder in folders:
        for who, of_cell in answers_of_cell(study, folder).items():
            answers.setdefault(who, {})[folder.cell.seed] = of_cell
    seeds = [seed for seed in study.seeds if all(seed in by_seed for by_seed in answers.values())]
    if not seeds:
        return None
    said = {who: [by_seed[seed] for seed in seeds] for who, by_seed in answers.items()}
    halves = {who: least for who, own in said.items() if (least := min(len(each.halves) for each in own))}
    targets, predicted = to_arrays(
        {who: [(each.targets, each.predicted) for each in own] for who, own in said.items()}
        | {
            (who, "halves"): [(each.targets, each.halves[:least]) for each in said[who]]
            for who, least in halves.items()
        }
    )
    resampler = Resampler(targets, len(seeds), min(halves.values(), default=1), study.resamples)
    classes = scores_of(folders[0])[study.scorer]["classes"]
    guesses = np.random.default_rng(0).integers(0, classes, size=(1, _UNIFORM_DRAWS, len(targets)))
    return Comparison(
        checkpoint=checkpoint,
        domain=domain,
        seeds=tuple(seeds),
        samples=len(targets),
        scores={who: resampler.score(predicted[who], predicted.get((who, "halves"))) for who in said},
        uniform=resampler.observe(guesses),
    )


def answers_of_cell(study: Study, folder: CellFolder) -> dict[Who, Answers]:
    """Return who answered in a cell, under each preset of which it is the cell."""
    policy = folder.cell.policy
    model = answers_of(folder, study.scorer)
    answers = {Who("model", policy, preset): model for preset in folder.cell.presets}
    if (richness := study.richness) is not None:
        probed = probed_answers_of(folder, richness.point, richness.probe)
        answers |= {Who("richness", policy, preset): probed for preset in folder.cell.presets}
        if policy == ZERO_SHOT and has_probe(folder, richness.image_point, richness.probe):
            answers[Who("image-only")] = probed_answers_of(folder, richness.image_point, richness.probe)
    if policy == ZERO_SHOT and (clip := clip_answers_of(folder)) is not None:
        answers[Who("clip")] = clip
    return answers
