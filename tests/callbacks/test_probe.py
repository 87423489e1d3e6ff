"""The feature callbacks in short real fits; one logs to a fake W&B run."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest
import torch
from lightning.pytorch.loggers import WandbLogger

from lightning_mllm.callbacks import RepresentationDrift
from lightning_mllm.errors import ConfigError
from lightning_mllm.probing import Point, linear_cka, load_features, mean_cosine
from lightning_mllm.tracking.figures import run as figures
from lightning_mllm.tracking.loggers import finish_loggers, make_loggers
from tests.support.fake_wandb import FakeRun, fake_wandb
from tests.support.feature_callbacks import (
    HALVES,
    POINTS,
    PROBES,
    SEEDS,
    Run,
    all_callbacks,
    make_run,
    moments,
)
from tests.support.figures import drawn_figures

SCORED = [f"{point.name}/{probe.name}" for probe in PROBES for point in POINTS]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory, tiny_llava: str) -> Run:
    folder = tmp_path_factory.mktemp("followed")
    with pytest.MonkeyPatch.context() as patch:
        runs = fake_wandb(patch)
        run = make_run(tiny_llava, folder, all_callbacks(folder))
        run.trainer.loggers = make_loggers(folder, name="run", mode="offline")
        with drawn_figures():
            run.fit().test()
        finish_loggers(run.trainer.loggers)
        assert runs[0].finished
    return run


@pytest.fixture
def wandb_run(followed: Run) -> FakeRun:
    (logger,) = (each for each in followed.trainer.loggers if isinstance(each, WandbLogger))
    run = logger.experiment
    assert isinstance(run, FakeRun)
    return run


@pytest.fixture(scope="module")
def resumed(followed: Run, tmp_path_factory: pytest.TempPathFactory, tiny_llava: str) -> Run:
    folder = tmp_path_factory.mktemp("resumed")
    run = make_run(tiny_llava, folder, all_callbacks(folder))
    return run.fit(ckpt_path=followed.folder / "step3.ckpt", weights_only=True)


def test_probes_are_scored_before_training_each_epoch_and_after_the_test(followed: Run) -> None:
    found = followed.rows("probes.csv")

    assert moments(found) == [
        ("-1", "0", "val"),
        ("0", "2", "val"),
        ("1", "4", "val"),
        ("1", "4", "test"),
    ]
    assert len(found) == 4 * len(SCORED) * len(SEEDS)
    assert {(row["n_train"], row["n_test"]) for row in found} == {("16", "8")}
    assert {row["control_accuracy"] == "" for row in found if row["probe"] == "mlp"} == {False}
    assert all(
        1 <= int(row["best_epoch"]) <= int(row["epochs_trained"])
        for row in found
        if row["probe"] == "mlp"
    )


def test_steps_are_the_same_in_the_wandb_run(wandb_run: FakeRun) -> None:
    def steps(key: str) -> list[int]:
        return [row["trainer/global_step"] for row in wandb_run.history if key in row]

    assert steps("val/loss") == steps("drift/post-mean/cka") == [2, 4]
    assert steps("probe/val/post-mean/mlp/accuracy") == [0, 2, 4]
    assert steps("train/loss") == [1, 2, 3, 4]
    assert steps("test/loss") == steps("probe/test/post-mean/mlp/accuracy") == [4]


def test_what_enters_a_projection_that_is_trained_stays_and_what_leaves_it_moves(
    followed: Run,
) -> None:
    before, after = (
        load_features(followed.folder / f"features/val-step{step}.safetensors") for step in (0, 4)
    )

    assert torch.equal(before["pre-mean"].features, after["pre-mean"].features)
    assert not torch.equal(before["post-mean"].features, after["post-mean"].features)


def test_the_metrics_of_the_probes_are_in_the_csv_and_in_the_wandb_run(
    followed: Run, wandb_run: FakeRun
) -> None:
    measures = ("accuracy", "accuracy_sd", "macro_f1", "macro_f1_sd", "selectivity")
    keys = {
        f"probe/{stage}/post-mean/mlp/{measure}"
        for stage in ("val", "test")
        for measure in measures
    }
    keys |= {
        "probe/val/pre-mean/nearest-centroid/accuracy",
        "drift/post-mean/cka",
        "drift/projector_weights",
    }

    assert keys | {"probes"} <= wandb_run.keys  # the picture among them
    assert keys <= set(followed.rows("metrics.csv")[0])
    first = next(row for row in wandb_run.history if "probe/val/post-mean/mlp/accuracy" in row)
    own = [
        row
        for row in followed.rows("probes.csv")
        if (row["point"], row["probe"]) == ("post-mean", "mlp")
    ]
    mean = fmean(float(row["accuracy"]) for row in own[: len(SEEDS)])
    assert first["probe/val/post-mean/mlp/accuracy"] == pytest.approx(mean)


def test_the_picture_is_over_steps_and_those_of_the_model_leave_the_probes_out(
    followed: Run,
) -> None:
    rows = [
        {"step": step, "epoch": 0, "accuracy": value}
        for step, value in ((5, 0.9), (2, 0.4), (2, 0.6))
    ]

    assert figures._group_by_step(rows, "accuracy") == {
        2: [0.4, 0.6],
        5: [0.9],
    }  # two validations of one epoch
    assert (followed.folder / "probes.png").stat().st_size > 10_000
    curves = figures._read_curves(followed.folder / "metrics.csv")
    assert "val/loss" in curves
    assert not [key for key in curves if key.startswith(("probe/", "drift/"))]


def test_every_prediction_and_every_score_of_the_test_is_kept(followed: Run) -> None:
    evaluation = Path("evaluation/test-step4")
    found = followed.rows(str(evaluation / "probe-predictions.csv"))
    summaries = json.loads((followed.folder / evaluation / "probes.json").read_text())
    scored = [row for row in followed.rows("probes.csv") if row["stage"] == "test"]

    assert [row["sample_id"] for row in found] == [f"test-{index}" for index in range(24, 32)]
    for score in scored:
        said = [row[f"{score['point']}/{score['probe']}/seed{score['seed']}"] for row in found]
        right = sum(one == row["target"] for one, row in zip(said, found, strict=True))
        assert right / len(found) == float(score["accuracy"])
    assert (summaries["stage"], summaries["step"], list(summaries["probes"])) == ("test", 4, SCORED)
    for name, summary in summaries["probes"].items():
        own = [float(row["accuracy"]) for row in scored if f"{row['point']}/{row['probe']}" == name]
        assert summary["accuracy_per_seed"] == own
        assert list(summary["per_class_f1"]) == ["dark", "light"]


def test_after_a_test_there_is_what_probes_of_halves_of_the_training_samples_say(
    followed: Run,
) -> None:
    found = followed.rows("evaluation/test-step4/probe-predictions.csv")

    for scored in SCORED:
        assert [name for name in found[0] if name.startswith(f"{scored}/half")] == [
            f"{scored}/half{number}" for number in range(HALVES)
        ]
    assert {row[f"{scored}/half0"] for row in found for scored in SCORED} <= {"dark", "light"}


def test_each_row_says_whether_the_probe_has_converged(followed: Run) -> None:
    found = followed.rows("probes.csv")

    assert {row["converged"] for row in found if row["probe"] == "mlp"} == {
        "False"
    }  # of two epochs
    assert {row["converged"] for row in found if row["probe"] == "nearest-centroid"} == {""}


def test_drift_is_that_of_the_saved_features_and_of_the_projection(
    followed: Run, tiny_llava: str, tmp_path: Path
) -> None:
    def saved(step: str) -> torch.Tensor:
        return load_features(followed.folder / f"features/val-step{step}.safetensors")[
            "post-mean"
        ].features

    untrained = make_run(tiny_llava, tmp_path, [])
    untrained.module.configure_model()
    before, after = untrained.projector(), followed.projector()
    moved = sum(
        float((after[name] - each).double().square().sum()) for name, each in before.items()
    )
    size = sum(float(each.double().square().sum()) for each in before.values())
    found = followed.rows("drift.csv")

    assert [(row["epoch"], row["n"]) for row in found] == [("0", "8"), ("1", "8")]
    assert float(found[-1]["weight_change"]) == pytest.approx((moved / size) ** 0.5)
    for row in found:
        assert float(row["cka"]) == linear_cka(saved("0"), saved(row["step"])) < 1
        assert float(row["cosine"]) == mean_cosine(saved("0"), saved(row["step"])) < 1


def test_the_callbacks_change_nothing_in_the_training(
    followed: Run, tiny_llava: str, tmp_path: Path
) -> None:
    alone = make_run(tiny_llava, tmp_path, []).fit().projector()

    for name, weights in followed.projector().items():
        assert torch.equal(weights, alone[name]), name


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(followed: Run, resumed: Run) -> None:
    assert moments(resumed.rows("probes.csv"))[:3] == [
        ("-1", "0", "val"),
        ("0", "2", "val"),
        ("1", "4", "val"),
    ]
    for name in ("probes.csv", "drift.csv"):
        expected, found = (
            [row for row in run.rows(name) if row.get("stage") != "test"]
            for run in (followed, resumed)
        )
        assert found == expected


def test_a_test_of_an_earlier_checkpoint_loses_no_row_and_names_its_step(
    followed: Run, resumed: Run
) -> None:
    before = resumed.rows("probes.csv")

    resumed.test(ckpt_path=followed.folder / "step3.ckpt", weights_only=True)

    found = resumed.rows("probes.csv")
    assert found[: len(before)] == before
    assert moments(found[len(before) :]) == [("", "3", "test")]
    assert (resumed.folder / "evaluation/test-step3/probes.json").is_file()
    assert (resumed.folder / "features/test-step3.safetensors").is_file()
    assert resumed.test().module.trained_steps == 3  # the weights still are those


@pytest.mark.parametrize(
    ("drift", "options", "message"),
    [
        (None, {}, "trained for 3 steps, and its checkpoint was written without the callback"),
        (
            [Point("pre"), Point("post")],
            {},
            "before training at post-mean, but its points are post-mean, pre-mean",
        ),
        (
            [Point("post")],
            {"eval_batch_size": 4, "limit_val_batches": 1},
            "of 8 validation samples, .* now has 4",
        ),
    ],
    ids=["no state", "other points", "other samples"],
)
def test_drift_of_a_resumed_run_needs_the_features_before_training(  # noqa: PLR0917 - fixtures and parameters
    followed: Run,
    tiny_llava: str,
    tmp_path: Path,
    drift: list[Point] | None,
    options: dict[str, int],
    message: str,
) -> None:
    content = torch.load(followed.folder / "step3.ckpt", weights_only=True)
    if drift is None:
        del content["callbacks"]["RepresentationDrift"]
    content["callbacks"] = {
        key: state for key, state in content["callbacks"].items() if "Drift" in key
    }
    torch.save(content, tmp_path / "step3.ckpt")
    run = make_run(tiny_llava, tmp_path, [RepresentationDrift(drift)], **options)  # type: ignore[arg-type]

    with pytest.raises(
        ConfigError, match=f"{message}.*or leave RepresentationDrift out, or start a new run"
    ):
        run.fit(ckpt_path=tmp_path / "step3.ckpt", weights_only=True)
