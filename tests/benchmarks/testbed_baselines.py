"""How far the questions of the test-bed are answered without understanding the scene.

Each baseline learns from the training scenes, per kind of question, and answers the questions of
the model card. Where a question names options, the one with the higher score is the answer,
whatever else scores higher:

- majority: the answer that is right most often;
- text: logistic regression on the question's words and pairs of neighbouring words;
- first: the option that is named first;
- pixels: ridge regression on a colour histogram and on the picture at 8 x 8 pixels;
- pixels + text: ridge regression on all of these, without products between them.

The penalties are chosen by cross-validation on the training questions. Run it, with one thread to
be quick: `OMP_NUM_THREADS=1 python tests/benchmarks/testbed_baselines.py`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.feature_extraction.text import CountVectorizer  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV  # type: ignore[import-untyped]
from sklearn.model_selection import GridSearchCV  # type: ignore[import-untyped]

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_mllm.evaluation.open_answers.answer_metrics import AnswerScore
from lightning_mllm.testbed.language.questions import WORDINGS, QuestionType
from lightning_mllm.testbed.training.exams import SAMPLINGS, ExamQuestion, Part, examination
from lightning_mllm.testbed.world.canvas import draw_image
from lightning_mllm.testbed.world.scenes import ATTRIBUTES

Features = NDArray[np.float64]
Baseline = Literal["majority", "text", "first", "pixels", "pixels + text"]

PARTS: tuple[Part, ...] = ("seen", "presence")
OF_TWO = (
    QuestionType.CHOOSE_ATTR,
    QuestionType.CHOOSE_CAT,
    QuestionType.CHOOSE_REL,
    QuestionType.LOGICAL_OBJ,
)
COMPARED = 3  # attributes that CompareAttr asks for
POSSIBLE = {
    "hposition": 2,
    **{str(attribute): len(values) for attribute, values in ATTRIBUTES.items()},
}  # QueryAttr
# weight of a word beside the picture, whose features are small: at 1 the words take the whole fit
WORDS = 0.1
BINS = 8  # of the histogram, per channel
THUMBNAIL = 8  # pixels per side
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse penalties of the logistic regression
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # of the ridge regression
FOLDS = 3


@dataclass(frozen=True)
class Result:
    """How the baselines did on a kind of question, or on several.

    Attributes:
        name: Kind or type.
        chance: Mean accuracy of a guess among the answers that a question can have.
        scores: Of the baselines that apply.
    """

    name: str
    chance: float
    scores: Mapping[Baseline, AnswerScore]

    @classmethod
    def over(cls, name: str, parts: Sequence[Result]) -> Result:
        """Pool kinds with equally many questions."""
        scores = {
            baseline: AnswerScore(
                sum(part.scores[baseline].n for part in parts),
                sum(part.scores[baseline].correct for part in parts),
            )
            for baseline in parts[0].scores
        }
        return cls(name, fmean(part.chance for part in parts), scores)

    def row(self, *, bold: bool) -> list[str]:
        """Return name, N, chance and accuracies in %; an arrow: the interval lies above chance."""
        n = self.scores["majority"].n
        cells = [self._cell(self.scores.get(baseline)) for baseline in get_args(Baseline)]
        return [
            f"**{self.name}**" if bold else self.name,
            str(n),
            f"{100 * self.chance:.1f}",
            *cells,
        ]

    def _cell(self, score: AnswerScore | None) -> str:
        if score is None:
            return ""
        low, high = score.interval
        mark = " ↑" if low > self.chance else ""
        return f"{100 * score.accuracy:.1f} ({100 * low:.0f} to {100 * high:.0f}){mark}"


def options(asked: ExamQuestion) -> tuple[str, ...]:
    """Return the options that a question names, in its order; none if it names none."""
    if asked.question is None or not asked.question.other_option:
        return ()
    words = re.findall(r"\w+", asked.text)
    return tuple(sorted((asked.answer, asked.question.other_option), key=words.index))


def possible_answers(asked: ExamQuestion) -> int:
    """Return how many answers fit a question."""
    if asked.question is None or asked.question.type in OF_TWO:
        return 2
    if asked.question.type is QuestionType.COMPARE_ATTR:
        return COMPARED
    *_, (_, _, queried) = asked.question.operations
    return POSSIBLE[queried]


def picture_features(asked: ExamQuestion) -> Features:
    """Return square roots of a joint histogram of colours, then a thumbnail from -1 to 1."""
    image = draw_image(asked.scene)
    red, green, blue = np.moveaxis(np.asarray(image, dtype=np.int64) * BINS // 256, -1, 0)
    histogram = (
        np.bincount(((red * BINS + green) * BINS + blue).ravel(), minlength=BINS**3) / red.size
    )
    thumbnail = (
        np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)).ravel() / 127.5 - 1
    )
    return np.concatenate([np.sqrt(histogram), thumbnail])


def choose(
    scores: Features, classes: Sequence[str], questions: Sequence[ExamQuestion]
) -> list[str]:
    """Return the answers that score highest, among the options where a question names some.

    Args:
        scores: (questions, classes).
        classes: The answers of the columns.
        questions: What is asked.
    """
    column = {answer: number for number, answer in enumerate(classes)}
    chosen = []
    for row, asked in zip(scores, questions, strict=True):
        candidates = [answer for answer in options(asked) if answer in column] or classes
        chosen.append(max(candidates, key=lambda answer: float(row[column[answer]])))
    return chosen


def classify(
    model: Any, x: Any, train: Sequence[ExamQuestion], x_test: Any, test: Sequence[ExamQuestion]
) -> list[str]:
    """Fit a linear classifier and return its answers."""
    model.fit(x, [asked.answer for asked in train])
    scores = model.decision_function(x_test)
    if scores.ndim == 1:  # two classes: the score of the second
        scores = np.stack([-scores, scores], axis=1)
    return choose(scores, list(model.classes_), test)


def answers(
    train: Sequence[ExamQuestion], test: Sequence[ExamQuestion]
) -> Iterator[tuple[Baseline, list[str]]]:
    """Yield the answers of each baseline that applies to a kind of question."""
    counts = Counter(asked.answer for asked in train)
    yield "majority", choose(np.tile(list(counts.values()), (len(test), 1)), list(counts), test)
    if options(test[0]):
        yield "first", [options(asked)[0] for asked in test]
    vectorizer = CountVectorizer(ngram_range=(1, 2), binary=True).fit(
        [asked.text for asked in train]
    )
    words, words_test = (
        vectorizer.transform([asked.text for asked in part]) for part in (train, test)
    )
    logistic = GridSearchCV(
        LogisticRegression(max_iter=1000), {"C": STRENGTHS}, scoring="neg_log_loss", cv=FOLDS
    )
    yield "text", classify(logistic, words, train, words_test, test)
    picture, picture_test = (
        np.stack([picture_features(asked) for asked in part]) for part in (train, test)
    )
    yield "pixels", classify(RidgeClassifierCV(PENALTIES), picture, train, picture_test, test)
    both, both_test = (
        np.hstack([part, WORDS * found.toarray()])
        for part, found in ((picture, words), (picture_test, words_test))
    )
    yield "pixels + text", classify(RidgeClassifierCV(PENALTIES), both, train, both_test, test)


def measure(train: Sequence[ExamQuestion], test: Sequence[ExamQuestion]) -> Result:
    """Train and test the baselines on one kind of question."""
    scores = {
        baseline: AnswerScore(
            len(test), sum(a == asked.answer for a, asked in zip(given, test, strict=True))
        )
        for baseline, given in answers(train, test)
    }
    return Result(
        test[0].kind.removeprefix("seen/"),
        fmean(1 / possible_answers(asked) for asked in test),
        scores,
    )


def questions(count: int, seed: int, split: str) -> Iterator[list[ExamQuestion]]:
    """Yield the questions of each kind."""
    asked = chain.from_iterable(examination(part, count, seed=seed, split=split) for part in PARTS)
    for _, group in groupby(asked, key=lambda question: question.kind):
        yield list(group)


def table(results: Sequence[Result]) -> Table:
    """Return the results as Markdown, per type and per kind."""
    drawn = Table("question", "N", "chance", *get_args(Baseline), box=MARKDOWN)
    for type, group in groupby(results, key=lambda result: result.name.split("/")[0]):
        parts = list(group)
        drawn.add_row(*Result.over(type, parts).row(bold=True))
        for part in parts:
            drawn.add_row(*part.row(bold=False))
    return drawn


def main() -> None:
    """Measure, print the table and write it if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=1500, help="training questions per kind")
    parser.add_argument(
        "--test",
        type=int,
        default=96,
        help="test questions per kind; 96 are those of the model card",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the scenes; 0 is that of the model card"
    )
    parser.add_argument("--output", type=Path, help="file for the table, in Markdown")
    parsed = parser.parse_args()
    kinds = sum(map(len, WORDINGS.values())) + len(SAMPLINGS)
    pairs = zip(
        questions(parsed.train, parsed.seed, "train"),
        questions(parsed.test, parsed.seed, "test"),
        strict=True,
    )
    results = [measure(train, test) for train, test in track(pairs, total=kinds, transient=True)]
    console = Console(width=180, highlight=False)
    with console.capture() as capture:
        console.print(table(results))
    written = "\n".join(line for line in capture.get().splitlines() if line.strip())
    console.print(written)
    if parsed.output is not None:
        parsed.output.write_text(written + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
