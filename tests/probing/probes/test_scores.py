import json
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import f1_score  # type: ignore[import-untyped]

from lightning_mllm.probing import MLPProbe, NearestCentroid, ProbeScore, Training
from tests.support.clusters import clusters

QUICK = Training(learning_rate=1e-2, max_epochs=3)


def _score(*seeds: int, control: bool = False) -> ProbeScore:
    train, test = clusters("train", noise=3), clusters("test", sizes=(9, 7, 5, 0), noise=3)
    return MLPProbe(training=QUICK, control=control).fit_score({"x": train}, {"x": test}, seeds)[
        "x"
    ]


def test_numbers_are_those_of_scikit_learn_over_the_classes_that_test_has() -> None:
    score = _score(0, 1, 2)

    accuracies = (score.predictions == score.targets).double().mean(dim=1)
    macro = [
        f1_score(score.targets, row, labels=[0, 1, 2], average="macro") for row in score.predictions
    ]
    assert score.accuracy == pytest.approx(float(accuracies.mean()))
    assert score.accuracy_sd == pytest.approx(float(accuracies.std()))
    assert [result.macro_f1 for result in score.results] == pytest.approx(macro)
    assert list(score.per_class_f1) == ["class 0", "class 1", "class 2"]
    assert sum(score.per_class_f1.values()) / 3 == pytest.approx(score.macro_f1)


def test_selectivity_is_accuracy_minus_that_of_the_control() -> None:
    score = _score(0, 1, control=True)

    control = sum(control.accuracy for control in score.controls) / 2
    assert score.control_accuracy == pytest.approx(control)
    assert score.selectivity == pytest.approx(score.accuracy - control)
    assert _score(0, 1).selectivity is None


def test_the_control_changes_no_other_number() -> None:
    with_control, without = _score(0, 1, control=True), _score(0, 1)

    assert torch.equal(with_control.predictions, without.predictions)


def test_a_single_seed_has_no_deviation() -> None:
    assert _score(0).accuracy_sd is None
    assert _score(0).macro_f1_sd is None


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_the_summary_is_strict_json_and_says_how_much_data_there_was(
    seeds: tuple[int, ...],
) -> None:
    summary = _score(*seeds).summary()

    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert (
        summary["n_train"],
        summary["n_test"],
        summary["classes"],
        summary["classes_scored"],
    ) == (48, 21, 4, 3)


def test_predictions_are_kept_per_seed_and_sample() -> None:
    score = _score(0, 1)

    assert score.predictions.shape == (2, score.n_test)
    assert len(score.sample_ids) == score.n_test


def test_a_class_that_only_test_has_counts_as_wrong() -> None:
    train = clusters("train", sizes=(8, 8, 8), noise=0.1)
    test = clusters("test", sizes=(8, 8, 8), noise=0.1)
    known = train.targets < 2
    less = replace(
        train,
        features=train.features[known],
        targets=train.targets[known],
        sample_ids=train.sample_ids[: int(known.sum())],
    )

    score = NearestCentroid().fit_score({"x": less}, {"x": test}, [0])["x"]

    assert score.accuracy == pytest.approx(2 / 3)
    assert score.per_class_f1["class 2"] == 0
    assert score.results[0].classes_scored == 3
