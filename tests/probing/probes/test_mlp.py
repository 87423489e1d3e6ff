import re
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.probing import FeatureSet, MLPProbe, Training
from lightning_mllm.probing.probes.network_training import TrainedNetworks, train_networks
from lightning_mllm.probing.probes.networks import POST_PROJECTION
from lightning_mllm.probing.probes.probe import ProbeTask
from lightning_mllm.probing.probes.stacked_data import StackedData
from lightning_mllm.probing.probes.training import PRESETS
from tests.support.clusters import clusters
from tests.support.probes_by_hand import train_by_hand

EARLY = Training(learning_rate=1e-2, batch_size=16, max_epochs=30, patience=3)
FIXED = replace(EARLY, max_epochs=5, val_fraction=0.0)
SIZES = POST_PROJECTION.sizes(24, 4)
both_ways = pytest.mark.parametrize("training", [EARLY, FIXED], ids=["early stopping", "fixed"])


def _sets(split: str, dtype: torch.dtype = torch.float64) -> dict[str, FeatureSet]:
    return {
        name: clusters(split, noise=noise, world=world, dtype=dtype)
        for world, (name, noise) in enumerate({"pre": 1.0, "post": 3.0}.items())
    }


def _train(tasks: list[ProbeTask], training: Training) -> TrainedNetworks:
    return train_networks(tasks, StackedData(tasks, True, torch.device("cpu")), SIZES, training)


@both_ways
def test_trained_together_equals_trained_alone(training: Training) -> None:
    train, test = _sets("train"), _sets("test")
    tasks = [
        ProbeTask(
            name=name,
            train=train[name],
            labels=train[name].targets,
            test=test[name].features,
            seed=seed,
        )
        for name in train
        for seed in range(4)
    ]

    together = _train(tasks, training)

    for model, task in enumerate(tasks):
        alone = _train([task], training)
        assert [together.epochs[model]] == alone.epochs
        assert [together.best_epochs[model]] == alone.best_epochs
        for ours, its in zip(together.weights, alone.weights, strict=True):
            torch.testing.assert_close(ours[model], its[0], rtol=1e-9, atol=1e-12)
    assert training is FIXED or len(set(together.epochs)) > 2  # they did stop one after another


@both_ways
def test_trained_together_equals_a_loop_over_torch_modules(training: Training) -> None:
    train, test = _sets("train"), _sets("test")

    scores = MLPProbe(training=training, standardise=False, device="cpu").fit_score(
        train, test, [0, 1, 2]
    )

    for name, score in scores.items():
        for row, seed in enumerate(score.seeds):
            run = train_by_hand(
                train[name], test[name].features, sizes=SIZES, training=training, seed=seed
            )
            assert (score.epochs[row], score.best_epochs[row]) == (run.epochs, run.best_epoch)
            assert torch.equal(score.predictions[row], run.predicted)


def test_how_many_train_at_once_changes_nothing() -> None:
    train, test = _sets("train"), _sets("test")

    some, all_at_once = (
        MLPProbe(training=EARLY, models_at_once=models).fit_score(train, test, [0, 1, 2])
        for models in (2, 16)
    )

    for name in train:
        assert some[name].summary() == all_at_once[name].summary()
        assert torch.equal(some[name].predictions, all_at_once[name].predictions)


def test_standardised_features_have_no_scale_and_no_origin() -> None:
    train, test = _sets("train")["post"], _sets("test")["post"]
    scale, shift = (
        torch.logspace(-3, 3, 24, dtype=torch.float64),
        torch.linspace(-9, 9, 24, dtype=torch.float64),
    )
    moved = [
        replace(features, features=features.features * scale + shift) for features in (train, test)
    ]

    scores = MLPProbe(training=EARLY, standardise=True).fit_score(
        {"as is": train, "moved": moved[0]}, {"as is": test, "moved": moved[1]}, [0, 1]
    )

    assert torch.equal(scores["as is"].predictions, scores["moved"].predictions)
    assert scores["as is"].epochs == scores["moved"].epochs


def test_a_constant_feature_standardises_to_nothing_special() -> None:
    train, test = clusters("train", noise=0.1), clusters("test", noise=0.1)
    train.features[:, 0] = test.features[:, 0] = 1234.567

    assert (
        MLPProbe(training=EARLY, standardise=True)
        .fit_score({"x": train}, {"x": test}, [0])["x"]
        .accuracy
        == 1
    )


def test_half_precision_features_train_as_the_same_numbers_in_single_precision() -> None:
    train, test = _sets("train", torch.float16), _sets("test", torch.float16)
    probe = MLPProbe(training=EARLY, standardise=True)

    half, single = (
        probe.fit_score(train, test, [0]),
        probe.fit_score(_single(train), _single(test), [0]),
    )

    for name in train:
        assert torch.equal(half[name].predictions, single[name].predictions)


def _single(sets: dict[str, FeatureSet]) -> dict[str, FeatureSet]:
    return {
        name: replace(features, features=features.features.float())
        for name, features in sets.items()
    }


def test_presets_have_the_stated_numbers() -> None:
    assert (MLPProbe().training, MLPProbe().standardise) == ("converging", True)
    paper, released = PRESETS["paper"], PRESETS["released-code"]
    assert (paper.batch_size, paper.learning_rate, paper.val_fraction) == (128, 1e-4, 0.1)
    assert (released.batch_size, released.learning_rate, released.max_epochs) == (32, 1e-3, 100)
    assert released.val_fraction == 0


def test_the_released_code_trains_100_epochs_and_keeps_the_last() -> None:
    score = MLPProbe(training="released-code").fit_score(_sets("train"), _sets("test"), [0])["post"]

    assert score.epochs == score.best_epochs == (100,)


def test_early_stopping_waits_for_its_patience_and_goes_back() -> None:
    score = MLPProbe(training=EARLY).fit_score(_sets("train"), _sets("test"), [0, 1, 2])["post"]

    assert all(
        epochs - best == EARLY.patience
        for epochs, best in zip(score.epochs, score.best_epochs, strict=True)
    )


def test_a_probe_ended_by_early_stopping_has_converged_and_one_out_of_epochs_says_it_has_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    enough = MLPProbe(training=EARLY).fit_score(_sets("train"), _sets("test"), [0, 1])["post"]
    assert (enough.converged, caplog.text) == ((True, True), "")

    short = MLPProbe(training=replace(EARLY, max_epochs=2)).fit_score(
        _sets("train"), _sets("test"), [0, 1]
    )["post"]

    assert short.converged == (False, False)
    assert "'mlp-custom' has not converged in 4 of 4 fits (features 'pre', 'post')" in caplog.text
    assert "Give it more epochs" in caplog.text


def test_a_probe_that_is_best_after_its_first_epoch_has_not_converged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    train = clusters("train")
    noise = torch.randn(train.features.shape, generator=torch.Generator().manual_seed(0))
    probe = MLPProbe(training=replace(EARLY, learning_rate=3e-3), control=True)

    sets = {"x": replace(train, features=noise)}, {"x": clusters("test")}
    score = probe.fit_score(*sets, range(4))["x"]

    assert 1 in score.best_epochs
    assert score.converged == tuple(best > 1 for best in score.best_epochs)
    assert f"has not converged in {score.best_epochs.count(1)} of 8 fits" in caplog.text


def test_of_a_fixed_number_of_epochs_nothing_tells_whether_they_were_enough(
    caplog: pytest.LogCaptureFixture,
) -> None:
    score = MLPProbe(training=FIXED).fit_score(_sets("train"), _sets("test"), [0])["post"]

    assert (score.converged, caplog.text) == ((None,), "")


def test_the_default_reads_from_few_scans_what_the_papers_preset_leaves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scans, digits = load_digits(return_X_y=True)
    train, test = (
        FeatureSet(
            features=torch.from_numpy(scans[rows] / 16).float(),
            targets=torch.from_numpy(digits[rows]),
            names=tuple("0123456789"),
            sample_ids=tuple(map(str, range(1797)[rows])),
        )
        for rows in (slice(150), slice(1500, None))
    )

    default = MLPProbe().fit_score({"x": train}, {"x": test}, [0])["x"]
    assert (default.converged, caplog.text) == ((True,), "")

    paper = MLPProbe(training="paper", standardise=False).fit_score({"x": train}, {"x": test}, [0])[
        "x"
    ]
    assert paper.converged == (False,)
    assert "'mlp-paper-raw' has not converged in 1 of 1 fits" in caplog.text
    assert default.accuracy > paper.accuracy + 0.1


def test_the_network_before_the_projection_is_another() -> None:
    sets = {"x": clusters("train")}, {"x": clusters("test")}
    once = replace(FIXED, max_epochs=1)

    post = MLPProbe(training=once).fit_score(*sets, [0])["x"]
    pre = MLPProbe(training=once, network="pre-projection").fit_score(*sets, [0])["x"]

    assert pre.parameters > post.parameters


def test_early_stopping_needs_a_sample_to_hold_out() -> None:
    sets = {"x": clusters("train", sizes=(1, 1, 1))}, {"x": clusters("test", sizes=(4, 4, 4))}

    with pytest.raises(
        DataError, match=r"'x': each class has a single training sample.*val_fraction 0"
    ):
        MLPProbe().fit_score(*sets, [0])

    assert MLPProbe(training="released-code").fit_score(*sets, [0])["x"].epochs == (100,)


@both_ways
def test_a_probe_that_diverges_says_so(training: Training) -> None:
    probe = MLPProbe(training=replace(training, learning_rate=1e30))

    with pytest.raises(
        DataError,
        match=r"features 'x' diverged \(seed 5\); their largest number is \d.*Set standardise",
    ):
        probe.fit_score({"x": clusters("train")}, {"x": clusters("test")}, [5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "must be positive"),
        ({"batch_size": 0}, "must be positive"),
        ({"patience": 0}, "must be positive"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0; it must be at least 0 and below 1"),
    ],
)
def test_training_settings_are_checked(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Training(**options)  # type: ignore[arg-type]


def test_probe_options_are_checked() -> None:
    with pytest.raises(
        ConfigError,
        match=re.escape("training is 'code'; give one of converging, paper, released-code"),
    ):
        MLPProbe(training="code")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="models_at_once is 0"):
        MLPProbe(models_at_once=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"torch sees no GPU\. Give 'auto' or 'cpu'"):
        MLPProbe(device="cuda").fit_score({"x": clusters("train")}, {"x": clusters("test")}, [0])
