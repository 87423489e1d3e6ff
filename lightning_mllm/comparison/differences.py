"""How much the runs differ from the baseline, score by score, and whether that can be chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np

from lightning_mllm.comparison.answers import RunAnswers, find_pictures
from lightning_mllm.statistics.answer_arrays import make_answer_arrays
from lightning_mllm.statistics.decisions import decide_by_holm
from lightning_mllm.statistics.interval import NO_INTERVAL, Interval
from lightning_mllm.statistics.paired import PairedShares
from lightning_mllm.statistics.seeds_and_samples import SeedResampler, difference_over_seeds

DIFFERENCE_COLUMNS = (
    *("score", "run", "baseline", "n", "pictures", "value", "baseline_value", "difference"),
    *("low_95", "high_95", "won", "lost", "p", "p_holm"),
)


@dataclass(frozen=True)
class ScoreDifference:
    """A score of a run, and that of the baseline on the same samples.

    Attributes:
        score: Scorer and measure, as in the names of metrics: `likelihood/accuracy`.
        run: Name of the run.
        baseline: Name of the run that it is compared with.
        n: Number of samples.
        pictures: How many pictures they are about.
        value: Score of the run.
        baseline_value: Score of the baseline.
        interval: 95 % interval of the difference; NaN where nothing can be said.
        won: Number of samples that only the run has right.
        lost: Number of samples that only the baseline has right.
        p: p-value of McNemar's exact test; NaN for macro-F1.
        p_holm: The p-value, adjusted for the number of runs that are compared with the baseline.
    """

    score: str
    run: str
    baseline: str
    n: int
    pictures: int
    value: float
    baseline_value: float
    interval: Interval
    won: int
    lost: int
    p: float
    p_holm: float

    @property
    def difference(self) -> float:
        """The run's score minus the baseline's."""
        return self.value - self.baseline_value

    def cells(self) -> tuple[object, ...]:
        """Return a row of `comparison.csv`, in the order of `DIFFERENCE_COLUMNS`."""
        *before, _, won, lost, p, p_holm = astuple(self)
        return (*before, self.difference, *self.interval, won, lost, p, p_holm)


def compare_answers(
    answers: Sequence[RunAnswers], samples: Sequence[str], scorers: Sequence[str]
) -> list[ScoreDifference]:
    """Compare each run with the first one.

    Args:
        answers: The answers of the runs; those of the baseline come first.
        samples: Ids of the samples that count.
        scorers: Whose answers are compared.
    """
    found: list[ScoreDifference] = []
    pictures = find_pictures(answers, samples)
    for scorer in scorers:
        accuracy = []
        for run in answers[1:]:
            accuracy.append(_compare_accuracy(answers[0], run, samples, scorer, pictures))
        adjusted = decide_by_holm([each.p for each in accuracy])
        for each, p_holm in zip(accuracy, adjusted, strict=True):
            found.append(replace(each, p_holm=p_holm))
        if all(scorer in run.predicted for run in answers):
            found += _compare_macro_f1(answers, samples, scorer, accuracy)
    return found


def _compare_accuracy(
    baseline: RunAnswers,
    run: RunAnswers,
    samples: Sequence[str],
    scorer: str,
    pictures: Sequence[str],
) -> ScoreDifference:
    ours = [run.right[scorer][sample] for sample in samples]
    theirs = [baseline.right[scorer][sample] for sample in samples]
    found = PairedShares.of(ours, theirs, pictures)
    return ScoreDifference(
        score=f"{scorer}/accuracy",
        run=run.run.name,
        baseline=baseline.run.name,
        n=found.n,
        pictures=found.pictures,
        value=found.ours,
        baseline_value=found.theirs,
        interval=found.interval,
        won=found.won,
        lost=found.lost,
        p=found.p,
        p_holm=found.p,
    )


def _compare_macro_f1(
    answers: Sequence[RunAnswers],
    samples: Sequence[str],
    scorer: str,
    accuracy: Sequence[ScoreDifference],
) -> list[ScoreDifference]:
    """Compare macro-F1 by a bootstrap over samples within their classes, the same for all runs."""
    truth = {sample: answers[0].truth[sample] for sample in samples}
    models = {}
    for run in answers:
        said = {sample: run.predicted[scorer][sample] for sample in samples}
        models[run.run.name] = [(truth, [said])]
    targets, predicted = make_answer_arrays(models)
    resampler = SeedResampler(targets, seeds=1)
    scores = {name: resampler.score(each)["macro_f1"] for name, each in predicted.items()}
    found = []
    for of_accuracy in accuracy:
        ours, theirs = scores[of_accuracy.run], scores[of_accuracy.baseline]
        same = np.array_equal(predicted[of_accuracy.run], predicted[of_accuracy.baseline])
        interval = NO_INTERVAL if same else difference_over_seeds(ours, theirs).interval
        found.append(
            replace(
                of_accuracy,
                score=f"{scorer}/macro_f1",
                value=ours.mean,
                baseline_value=theirs.mean,
                interval=interval,
                p=math.nan,
                p_holm=math.nan,
            )
        )
    return found
