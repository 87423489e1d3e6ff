"""What holds for every probe."""

import logging
from dataclasses import replace

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.probing import (
    FeatureSet,
    LinearProbe,
    MLPProbe,
    NearestCentroid,
    Probe,
    Training,
)
from lightning_mllm.probing.probes.held_out import hold_out
from lightning_mllm.store.seeds import torch_generator
from tests.support.clusters import clusters

QUICK = Training(learning_rate=1e-2, max_epochs=40, patience=10, batch_size=16)
PROBES = [
    NearestCentroid(control=True),
    LinearProbe(control=True),
    MLPProbe(training=QUICK, control=True),
]
each_probe = pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)


@each_probe
def test_separable_classes_are_told_apart(probe: Probe) -> None:
    sets = {"x": clusters("train", noise=0.1)}, {"x": clusters("test", noise=0.1)}

    score = probe.fit_score(*sets, [0, 1])["x"]

    assert score.accuracy == score.macro_f1 == 1


@each_probe
def test_shuffled_labels_are_at_chance(probe: Probe) -> None:
    seeds, classes = 40, 10
    train, test = (
        clusters(split, sizes=(6,) * classes, width=8, noise=0.3) for split in ("train", "test")
    )

    score = probe.fit_score({"x": train}, {"x": test}, list(range(seeds)))["x"]

    # samples of a cluster share their prediction: at worst, a seed is one draw per class
    deviation = (1 / classes * (1 - 1 / classes) / (seeds * classes)) ** 0.5
    assert score.control_accuracy == pytest.approx(1 / classes, abs=3 * deviation)
    assert score.selectivity is not None
    assert score.selectivity > 0.8


@each_probe
def test_seeds_reproduce_bit_for_bit_and_leave_the_global_state_alone(probe: Probe) -> None:
    sets = {"x": clusters("train", noise=3)}, {"x": clusters("test", noise=3)}
    state = torch.get_rng_state()

    first = probe.fit_score(*sets, [3, 4])["x"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        second = probe.fit_score(*sets, [3, 4])["x"]

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.predictions, second.predictions)
    assert first.summary() == second.summary()


@each_probe
def test_it_trains_within_inference_mode_as_outside(probe: Probe) -> None:
    outside = probe.fit_score(
        {"x": clusters("train", noise=3)}, {"x": clusters("test", noise=3)}, [0]
    )["x"]

    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = probe.fit_score(
            {"x": clusters("train", noise=3)}, {"x": clusters("test", noise=3)}, [0]
        )["x"]

    assert torch.equal(inside.predictions, outside.predictions)


@each_probe
def test_the_test_split_chooses_nothing(probe: Probe) -> None:
    train, test = clusters("train", noise=3), clusters("test", noise=3)
    half = slice(len(test) // 2, None)
    other = replace(test, features=test.features.clone(), targets=3 - test.targets)
    other.features[half] *= -50

    scores = probe.fit_score({"a": train, "b": train}, {"a": test, "b": other}, [0, 1])

    kept = len(test) // 2
    assert torch.equal(scores["a"].predictions[:, :kept], scores["b"].predictions[:, :kept])
    assert scores["a"].epochs == scores["b"].epochs
    assert scores["a"].best_epochs == scores["b"].best_epochs


@each_probe
def test_sets_of_different_widths_sizes_and_classes_score_as_they_do_alone(probe: Probe) -> None:
    shapes = {
        "a": (24, (12, 12)),
        "b": (10, (12, 12)),
        "c": (24, (20, 9, 1)),
        "d": (24, (12, 12)),
        "e": (24, (20, 4)),
    }
    train, test = (
        {
            name: clusters(
                split, width=width, sizes=sizes, noise=3, world=world, dtype=torch.float64
            )
            for world, (name, (width, sizes)) in enumerate(shapes.items())
        }
        for split in ("train", "test")
    )

    together = probe.fit_score(train, test, [0, 1])

    assert list(together) == list(shapes)
    for name in shapes:
        alone = probe.fit_score({name: train[name]}, {name: test[name]}, [0, 1])[name]
        assert torch.equal(together[name].predictions, alone.predictions)
        assert together[name].summary() == alone.summary()


@each_probe
def test_a_half_of_the_training_samples_gives_what_it_gives_alone_and_changes_no_score(
    probe: Probe,
) -> None:
    train, test = (
        clusters("train", noise=3, dtype=torch.float64),
        clusters("test", noise=3, dtype=torch.float64),
    )
    rows, others = hold_out(train.targets, 0.5, torch_generator(1, "half"))
    half = replace(
        train,
        features=train.features[rows],
        targets=train.targets[rows],
        sample_ids=tuple(train.sample_ids[row] for row in rows),
    )

    score = probe.fit_score({"x": train}, {"x": test}, [0, 1], halves=3)["x"]

    assert len(rows) == len(others) == len(train) / 2
    assert torch.equal(
        score.halves[1], probe.fit_score({"x": half}, {"x": test}, [1])["x"].predictions[0]
    )
    assert len({tuple(each.tolist()) for each in score.halves}) == len(score.halves) == 3
    assert score.summary() == probe.fit_score({"x": train}, {"x": test}, [0, 1])["x"].summary()


def test_a_class_that_only_the_test_split_has_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    train, test = clusters("train", sizes=(6, 6, 0)), clusters("test", sizes=(6, 6, 6))

    with caplog.at_level(logging.WARNING):
        NearestCentroid().fit_score({"x": train}, {"x": test}, [0])

    assert "'x': the test split has classes that train has no sample of" in caplog.text
    assert "'class 2'. Their samples are scored as wrong" in caplog.text


def _broken(what: str) -> tuple[dict[str, FeatureSet], dict[str, FeatureSet]]:
    train, test = {"x": clusters("train")}, {"x": clusters("test")}
    match what:
        case "points":
            return train, {"y": test["x"]}
        case "nothing":
            return {}, {}
        case "width":
            return train, {"x": clusters("test", width=5)}
        case "names":
            return train, {"x": replace(test["x"], names=("a", "b", "c", "d"))}
        case "same":
            return train, {"x": clusters("train")}
        case _:
            return {"x": replace(train["x"], targets=torch.full_like(train["x"].targets, 2))}, test


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "points",
            r"found train features \['x'\] and test features \['y'\]. Extract the same ones",
        ),
        ("nothing", r"found train features \[\]"),
        ("width", "train has 24 numbers per sample .* test has 5 "),
        ("names", "classes 'class 0', .* and 'a', 'b', 'c', 'd'. Extract both with one model"),
        ("same", "train and test are the same 48 samples"),
        (
            "one class",
            "all 48 training samples are of the class 'class 2'; a probe needs two classes",
        ),
    ],
)
def test_sets_that_cannot_be_probed_are_refused(what: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        NearestCentroid().fit_score(*_broken(what), [0])


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_must_be_there_and_differ(seeds: list[int]) -> None:
    with pytest.raises(ConfigError, match="Give one or more, all different"):
        NearestCentroid().fit_score({"x": clusters("train")}, {"x": clusters("test")}, seeds)


def test_probes_are_chosen_by_class_path() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--probes", type=list[Probe])
    probes = [
        {
            "class_path": "lightning_mllm.probing.MLPProbe",
            "init_args": {"training": "released-code", "control": True},
        },
        {
            "class_path": "lightning_mllm.probing.MLPProbe",
            "init_args": {"training": {"learning_rate": 0.01}},
        },
        {
            "class_path": "lightning_mllm.probing.LinearProbe",
            "init_args": {"penalties": [0.1, 1e-3]},
        },
        {"class_path": "lightning_mllm.probing.NearestCentroid"},
    ]

    parsed = parser.instantiate(parser.parse_object({"probes": probes})).probes

    assert parsed == [
        MLPProbe(training="released-code", control=True),
        MLPProbe(training=Training(learning_rate=0.01)),
        LinearProbe(penalties=(0.1, 1e-3)),
        NearestCentroid(),
    ]


def test_probes_that_differ_have_names_that_differ() -> None:
    names = {
        "nearest-centroid": NearestCentroid(control=True),
        "mlp": MLPProbe(control=True),
        "mlp-released-code-raw": MLPProbe(training="released-code", standardise=False),
        "mlp-raw": MLPProbe(standardise=False),
        "mlp-pre-projection-paper": MLPProbe(network="pre-projection", training="paper"),
        "mlp-custom": MLPProbe(training=QUICK),
        "linear": LinearProbe(),
        "linear-custom-raw": LinearProbe(penalties=(1e-3,), standardise=False),
        "wide": MLPProbe(training=QUICK, label="wide"),
        "floor": NearestCentroid(label="floor"),
    }

    assert [probe.name for probe in names.values()] == list(names)


def test_a_label_has_no_slash() -> None:
    with pytest.raises(ConfigError, match="label has no slash; found 'a/b'"):
        MLPProbe(label="a/b")
