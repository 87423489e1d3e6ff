"""Two processes on the CPU reach what one reaches with the same global batch."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_mllm.cli.main import main
from lightning_mllm.probing import load_features
from tests.conftest import ClipBuilder
from tests.integration.test_open_answers import arguments, write_questions
from tests.support.command_line import (
    conversation,
    files_below,
    final_metrics,
    isolate,
    write_image_folder,
    write_llava_json,
)

pytestmark = pytest.mark.slow

TWO = ("--trainer.accelerator", "cpu", "--trainer.strategy=ddp", "--trainer.devices=2")
LIGHTNING = (sys.executable, "-m", "lightning_mllm")
TIMEOUT = 180  # seconds; a process that waits for the other one waits for ever
FOLLOWED = ("probe", "drift", "features", "clip")
COUNTED = ("epoch", "step", "stage", "point", "probe", "seed", "n_train", "n_test", "n")
LOG_PROBABILITY = "likelihood/log_probability"
FOLLOW = """
trainer:
  callbacks:
    - class_path: ProbeEachEpoch
      init_args:
        probes:
          - class_path: NearestCentroid
          - {class_path: MLPProbe, init_args: {training: {max_epochs: 2}, label: mlp}}
        seeds: [0, 1]
        cache: {class_path: lightning_mllm.probing.FeatureCache, init_args: {root: cache}}
    - class_path: SaveFeatures
    - class_path: RepresentationDrift
    - {class_path: ClipZeroShot, init_args: {checkpoint: A_CLIP}}
model:
  scorers: []
"""


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table of predictions, whose log-probabilities only nearly agree."""
    with path.open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row[LOG_PROBABILITY] = pytest.approx(float(row[LOG_PROBABILITY]), abs=1e-4)
    return rows


def run_two(
    arguments: list[str],
    folder: Path,
    launcher: tuple[str, ...] = LIGHTNING,
) -> None:
    code, errors = launch_two(arguments, folder, launcher)
    assert code == 0, errors[-3000:]
    assert "Traceback" not in errors, errors[-3000:]  # of the second process


def launch_two(
    arguments: list[str], folder: Path, launcher: tuple[str, ...] = LIGHTNING
) -> tuple[int, str]:
    """Run two processes; return their exit code and errors. After a time-out none is left."""
    launched = subprocess.Popen(
        [*launcher, *arguments, *TWO],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = launched.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(launched.pid, signal.SIGKILL)
        raise
    return launched.returncode, errors


def compare(one: Path, two: Path) -> None:
    expected, found = final_metrics(one), final_metrics(two)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-5), key
    weights = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (one, two)
    ]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-6, rtol=0, msg=name)


def counts(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{key: row[key] for key in row if key in COUNTED} for row in csv.DictReader(file)]


def scores(run: Path, pattern: str) -> dict[str, dict[str, float]]:
    (file,) = (run / "evaluation").glob(f"{pattern}/scores.json")
    content: dict[str, dict[str, float]] = json.loads(file.read_text())["scorers"]
    return content


def test_two_processes_equal_one_and_count_each_validation_sample_once(
    tiny_llava: str, tmp_path: Path
) -> None:
    root = write_image_folder(
        tmp_path / "photos",
        {"train/cat": 6, "train/dog": 5, "val/cat": 3, "val/dog": 2, "test/cat": 4, "test/dog": 3},
    )
    arguments = [
        *(
            "fit",
            "--model.checkpoint",
            tiny_llava,
            "--data",
            "ImageFolder",
            "--data.init_args.root",
            str(root),
        ),
        *(
            "--data.init_args.batch_size",
            "4",
            "--data.init_args.eval_batch_size",
            "4",
            "--test_after",
            "true",
        ),
        *(
            "--trainer.max_epochs",
            "2",
            "--trainer.log_every_n_steps",
            "1",
            "--trainer.run.root",
            str(tmp_path),
        ),
    ]

    main([*arguments, "--trainer.run.name", "one"])
    run_two([*arguments, "--trainer.run.name", "two", "--model.micro_batch_size", "1"], tmp_path)

    compare(tmp_path / "one", tmp_path / "two")
    for stage, size in (("val-step3", 5), ("val-step6", 5), ("test-*", 7)):
        found = scores(tmp_path / "two", stage)
        assert {scorer: score["n"] for scorer, score in found.items()} == {
            "generation": size,
            "likelihood": size,
        }
        assert found == scores(tmp_path / "one", stage)
    one, two = (
        read_predictions(next((tmp_path / run / "evaluation").glob("test-*/predictions.csv")))
        for run in ("one", "two")
    )
    assert two == one
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "one", "two"}


@pytest.mark.parametrize("policy", ["ProjectorOnly", "Everything"])
def test_a_process_without_an_image_does_not_hang_and_changes_nothing(
    tiny_llava: str, tmp_path: Path, policy: str
) -> None:
    rows = [conversation(f"p{k}", images=k % 2) for k in range(11)]
    file = write_llava_json(tmp_path / "talks", rows)
    arguments = [
        *("fit", "--model.checkpoint", tiny_llava, "--model.policy", policy, "--data", "LlavaJson"),
        *("--data.init_args.train", str(file), "--data.init_args.val", str(file)),
        *("--data.init_args.batch_size", "2", "--data.init_args.eval_batch_size", "2"),
        *("--data.init_args.group_by_length", "false"),
        *(
            "--trainer.max_epochs",
            "1",
            "--trainer.log_every_n_steps",
            "1",
            "--trainer.run.root",
            str(tmp_path),
        ),
    ]

    main([*arguments, "--trainer.run.name", "one"])
    run_two([*arguments, "--trainer.run.name", "two"], tmp_path)

    compare(tmp_path / "one", tmp_path / "two")


def test_two_processes_follow_the_features_and_ask_clip_as_one_does(
    tiny_llava: str, tiny_clip: ClipBuilder, tmp_path: Path
) -> None:
    root = write_image_folder(
        tmp_path / "photos",
        {"train/cat": 6, "train/dog": 5, "val/cat": 3, "val/dog": 2, "test/cat": 4, "test/dog": 3},
    )
    (tmp_path / "follow.yaml").write_text(FOLLOW.replace("A_CLIP", tiny_clip("clip")))
    arguments = [
        *(
            "fit",
            "--config",
            str(tmp_path / "follow.yaml"),
            "--model.checkpoint",
            tiny_llava,
            "--test_after",
            "true",
        ),
        *("--data", "ImageFolder", "--data.init_args.root", str(root)),
        *("--data.init_args.batch_size", "4", "--data.init_args.eval_batch_size", "4"),
        *("--trainer.max_epochs", "2", "--trainer.run.root", str(tmp_path)),
    ]

    main([*arguments, "--trainer.run.name", "one"])
    run_two([*arguments, "--trainer.run.name", "two"], tmp_path)

    one, two = tmp_path / "one", tmp_path / "two"
    written = [
        {name for name in files_below(run) if any(part in name for part in FOLLOWED)}
        for run in (one, two)
    ]
    assert written[0] == written[1] >= {"probes.csv", "drift.csv", "features/val-step6.safetensors"}
    assert not [name for name in files_below(two) if name.endswith(".part")]
    assert counts(two / "probes.csv") == counts(one / "probes.csv")  # a row of each, and the same N
    assert counts(two / "drift.csv") == counts(one / "drift.csv")
    answers = [next(run.rglob("clip-predictions.csv")).read_text() for run in (one, two)]
    assert answers[0] == answers[1]
    for name in (name for name in written[0] if name.endswith(".safetensors")):
        for point, expected in load_features(one / name).items():
            found = load_features(two / name)[point]
            assert (found.sample_ids, found.targets.tolist()) == (
                expected.sample_ids,
                expected.targets.tolist(),
            )
            torch.testing.assert_close(found.features, expected.features, atol=1e-4, rtol=1e-4)


def test_open_answers_are_each_counted_once(tiny_llava: str, tmp_path: Path) -> None:
    options = arguments(tiny_llava, *write_questions(tmp_path), tmp_path)
    main(["fit", *options, "--trainer.max_steps", "12", "--trainer.run.name", "fit"])
    test = ["test", *options, "--ckpt_path", str(tmp_path / "fit" / "checkpoints" / "last.ckpt")]

    main([*test, "--trainer.run.name", "one"])
    run_two([*test, "--trainer.run.name", "two"], tmp_path)

    one, two = (tmp_path / name / "evaluation" / "test-step12" for name in ("one", "two"))
    assert json.loads((two / "scores.json").read_text())["exact_match"]["n"] == 7
    for file in ("scores.json", "exact-match-per-kind.csv", "predictions.csv"):
        assert (one / file).read_text() == (two / file).read_text()
    assert final_metrics(tmp_path / "two") == pytest.approx(
        final_metrics(tmp_path / "one"), abs=1e-5
    )


def test_processes_that_torchrun_starts_share_one_new_folder(
    tiny_llava: str, tmp_path: Path
) -> None:
    torchrun = (
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"),
        *("-m", "lightning_mllm"),
    )
    arguments = [
        *(
            "fit",
            "--model.checkpoint",
            tiny_llava,
            "--data",
            "Digits",
            "--data.init_args.batch_size",
            "4",
        ),
        *(
            "--trainer.limit_train_batches",
            "2",
            "--trainer.limit_val_batches",
            "1",
            "--trainer.run.root",
            "runs",
        ),
    ]

    for expected in ({"run"}, {"run", "run-2"}):
        run_two(arguments, tmp_path, torchrun)

        assert {path.name for path in (tmp_path / "runs").iterdir()} == expected
    for run in (tmp_path / "runs").iterdir():
        assert (run / "checkpoints" / "last.ckpt").is_file()


def test_states_and_answers_of_two_processes_are_those_of_one(
    tiny_llava: str, tmp_path: Path
) -> None:
    train, test = write_questions(tmp_path)  # 9 samples in batches of 4: one is left for the last
    given = arguments(tiny_llava, train, test, tmp_path)
    points = ("--points", "[{place: last, layer: 1}, {place: prompt, layer: 1, pooling: none}]")
    for folder, run in (("one", main), ("two", lambda each: run_two(each, tmp_path))):
        run(["extract", *given, *points, "--output", f"states-{folder}"])
        run(["predict", *given, "--trainer.run.name", folder])

    states: list[dict[tuple[str, str], torch.Tensor]] = [{}, {}]
    for found, folder in zip(states, ("one", "two"), strict=True):
        with (tmp_path / f"states-{folder}" / "index.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            tensors = load_file(tmp_path / f"states-{folder}" / row["file"])
            own = tensors["states"][int(row["start"]) : int(row["end"])]
            found[row["point"], row["sample_id"]] = own
    assert states[0].keys() == states[1].keys()
    assert len(states[0]) == 2 * 9
    for key, own in states[0].items():
        torch.testing.assert_close(states[1][key], own, atol=1e-5, rtol=0)
    answers = [
        (tmp_path / name / "predict" / "test-step0" / "predictions.csv").read_text()
        for name in ("one", "two")
    ]
    assert answers[0] == answers[1]
    assert len(list(csv.DictReader(answers[0].split("\n")))) == 9
