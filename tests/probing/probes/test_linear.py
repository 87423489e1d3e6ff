import re
from dataclasses import replace

import pytest
import torch

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.probing import FeatureSet, LinearProbe
from tests.support.clusters import clusters

FIXED = LinearProbe(penalties=(1e-3,))


def _pair(
    noise: float = 3.0, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, FeatureSet], dict[str, FeatureSet]]:
    train, test = (clusters(split, noise=noise, dtype=dtype) for split in ("train", "test"))
    return {"x": train}, {"x": test}


def test_every_fit_of_overlapping_and_of_separable_classes_converges(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for noise in (0.01, 1.0, 10.0):
        score = LinearProbe(control=True).fit_score(*_pair(noise), [0, 1, 2], halves=3)["x"]
        assert score.converged == (True, True, True)
    assert not caplog.text


def test_a_fit_that_is_stopped_says_so_and_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    score = LinearProbe(max_iterations=2).fit_score(*_pair(), [0, 1])["x"]

    assert score.converged == (False, False)
    assert (
        "'linear-custom' has not converged in 2 of 2 fits (features 'x'): there may be more"
        in caplog.text
    )
    assert "Raise max_iterations, or leave out the weakest penalties." in caplog.text


def test_at_a_fixed_penalty_the_seed_decides_nothing() -> None:
    predictions = FIXED.fit_score(*_pair(), [0, 1, 17])["x"].predictions

    assert (predictions == predictions[0]).all()


def test_the_order_of_the_samples_decides_nothing_at_a_fixed_penalty() -> None:
    train, test = _pair()
    order = torch.randperm(len(train["x"]), generator=torch.Generator().manual_seed(0))
    shuffled = replace(
        train["x"], features=train["x"].features[order], targets=train["x"].targets[order]
    )

    one, other = (FIXED.fit_score({"x": each}, test, [0])["x"] for each in (train["x"], shuffled))

    assert torch.equal(one.predictions, other.predictions)


@pytest.mark.parametrize(
    "probe", [LinearProbe(), LinearProbe(standardise=False)], ids=["standardised", "raw"]
)
def test_features_have_no_scale_and_no_origin(probe: LinearProbe) -> None:
    train, test = (clusters(split, noise=3, dtype=torch.float64) for split in ("train", "test"))
    scale = torch.logspace(-3, 3, 24, dtype=torch.float64) if probe.standardise else 1e4
    moved = [
        replace(features, features=features.features * scale + 900) for features in (train, test)
    ]

    scores = probe.fit_score(
        {"as is": train, "moved": moved[0]}, {"as is": test, "moved": moved[1]}, [0, 1]
    )

    assert torch.equal(scores["as is"].predictions, scores["moved"].predictions)


def test_the_penalty_that_reads_more_is_chosen() -> None:
    """A quarter of the training labels are wrong: a weak penalty learns them by heart."""
    train, test = (
        clusters(split, sizes=(100, 100), width=150, noise=6) for split in ("train", "test")
    )
    wrong = torch.rand(len(train), generator=torch.Generator().manual_seed(0)) < 0.25
    sets = (
        {"x": replace(train, targets=torch.where(wrong, 1 - train.targets, train.targets))},
        {"x": test},
    )

    strong, weak = (
        LinearProbe(penalties=(each,)).fit_score(*sets, [0])["x"] for each in (1e-1, 1e-6)
    )
    both = LinearProbe(penalties=(1e-6, 1e-1)).fit_score(*sets, [0, 1, 2])["x"]

    assert strong.accuracy > weak.accuracy
    assert (both.predictions == strong.predictions).all()


def test_half_precision_features_are_fitted_as_the_same_numbers_in_double_precision() -> None:
    train, test = _pair(dtype=torch.float16)
    wide, tests = (
        {"x": replace(each["x"], features=each["x"].features.double())} for each in (train, test)
    )

    half, double = (
        LinearProbe().fit_score(train, test, [0]),
        LinearProbe().fit_score(wide, tests, [0]),
    )

    assert torch.equal(half["x"].predictions, double["x"].predictions)


def test_how_many_are_fitted_at_once_changes_nothing() -> None:
    train, test = (
        {name: clusters(split, noise=3, world=world) for world, name in enumerate("ab")}
        for split in ("train", "test")
    )

    one, many = (
        LinearProbe(models_at_once=k).fit_score(train, test, [0, 1, 2], halves=2) for k in (2, 20)
    )

    for name in train:
        assert one[name].summary() == many[name].summary()
        assert all(
            torch.equal(*halves) for halves in zip(one[name].halves, many[name].halves, strict=True)
        )


def test_a_constant_feature_is_nothing_special() -> None:
    train, test = clusters("train", noise=0.1), clusters("test", noise=0.1)
    train.features[:, 0] = test.features[:, 0] = 1234.567

    assert LinearProbe().fit_score({"x": train}, {"x": test}, [0])["x"].accuracy == 1


def test_a_class_with_one_training_sample_is_learnt_from_it() -> None:
    train = clusters("train", sizes=(20, 20, 1), noise=0.1)
    test = clusters("test", sizes=(4, 4, 4), noise=0.1)

    assert LinearProbe().fit_score({"x": train}, {"x": test}, [0])["x"].accuracy == 1


def test_two_samples_of_each_class_are_enough() -> None:
    train, test = (
        clusters("train", sizes=(2, 2), noise=0.1),
        clusters("test", sizes=(4, 4), noise=0.1),
    )

    score = LinearProbe().fit_score({"x": train}, {"x": test}, [0])["x"]

    assert (score.accuracy, score.converged) == (1, (True,))


def test_a_class_that_only_the_test_split_has_is_never_predicted() -> None:
    train, test = clusters("train", sizes=(6, 6, 0)), clusters("test", sizes=(6, 6, 6))

    assert 2 not in LinearProbe().fit_score({"x": train}, {"x": test}, [0])["x"].predictions


def test_single_samples_leave_none_to_choose_a_penalty_by() -> None:
    sets = (
        {"x": clusters("train", sizes=(1, 1, 1), noise=0.1)},
        {"x": clusters("test", sizes=(4, 4, 4), noise=0.1)},
    )

    with pytest.raises(
        DataError,
        match=r"'x': each class has a single training sample.*or the probe a single penalty",
    ):
        LinearProbe().fit_score(*sets, [0])

    assert FIXED.fit_score(*sets, [0])["x"].accuracy == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalties": ()}, "penalties are (); give one or more, all different and above 0"),
        ({"penalties": (0.0, 1.0)}, "penalties are (0.0, 1.0); give one or more"),
        ({"penalties": (1.0, 1.0)}, "penalties are (1.0, 1.0); give one or more"),
        ({"max_iterations": 0}, "max_iterations is 0; it must be at least 1"),
        ({"models_at_once": 0}, "models_at_once is 0"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        LinearProbe(**options)  # type: ignore[arg-type]
