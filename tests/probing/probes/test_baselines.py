from dataclasses import replace

import torch
from sklearn.neighbors import NearestCentroid as Reference  # type: ignore[import-untyped]

from lightning_mllm.probing import NearestCentroid
from tests.support.clusters import clusters


def test_it_predicts_what_scikit_learn_predicts() -> None:
    train, test = clusters("train", noise=3), clusters("test", noise=3)

    score = NearestCentroid().fit_score({"x": train}, {"x": test}, [0])["x"]

    reference = Reference().fit(train.features.numpy(), train.targets.numpy())
    assert score.predictions[0].tolist() == reference.predict(test.features.numpy()).tolist()


def test_the_order_of_the_samples_is_no_matter() -> None:
    train, test = clusters("train", noise=3), clusters("test", noise=3)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    shuffled = replace(train, features=train.features[order], targets=train.targets[order])

    scores = NearestCentroid().fit_score({"a": train, "b": shuffled}, {"a": test, "b": test}, [0])

    assert torch.equal(scores["a"].predictions, scores["b"].predictions)


def test_seeds_change_the_control_only() -> None:
    sets = {"x": clusters("train", noise=3)}, {"x": clusters("test", noise=3)}

    score = NearestCentroid(control=True).fit_score(*sets, list(range(8)))["x"]

    assert score.accuracy_sd == 0
    assert len({control.accuracy for control in score.controls}) > 1


def test_a_class_without_training_samples_is_never_predicted() -> None:
    train = clusters("train", sizes=(6, 6, 0), noise=0)  # its centroid would be at the origin
    test = clusters("test", sizes=(6, 6, 0), noise=0)
    test = replace(test, features=torch.zeros_like(test.features))

    score = NearestCentroid().fit_score({"x": train}, {"x": test}, [0])["x"]

    assert 2 not in score.predictions
