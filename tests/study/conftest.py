"""A small study, and a command line that only writes what a run leaves behind."""

from __future__ import annotations

import csv
import json
import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.study import ProjectionCommand
from lightning_mllm.study.projection.cells import ProjectionFolder, projection_cells

CLASSES = ("ash", "beech", "cedar")
SKILL = {"zero_shot": 0.2, "ft_proj": 0.55, "ft_e2e": 0.95}
RICHNESS = {"zero_shot": 0.95, "ft_e2e": 0.65, "ft_proj": 0.3}
Change = Callable[..., ProjectionCommand]


def option(arguments: Sequence[str], name: str) -> str | None:
    return arguments[list(arguments).index(name) + 1] if name in arguments else None


class FakeLightning:
    """Leaves behind what a run would; answers get better with the policy, richness worse."""

    def __init__(self, samples: int = 60) -> None:
        self.samples = samples
        self.calls: list[list[str]] = []
        self.breaks: dict[str, str] = {}  # cell -> "at once" or "in training"

    @property
    def cells(self) -> list[str]:
        return [str(option(call, "--trainer.run.name")) for call in self.calls]

    def __call__(self, arguments: Sequence[str], log: Path, lock: int) -> None:
        self.calls.append(list(arguments))
        cell = self.cells[-1]
        log.write_text(f"the log of {cell}\n")
        run = self._folder(Path(str(option(arguments, "--trainer.run.root"))), cell)
        if self.breaks.get(cell) == "in training":
            (run / "checkpoints").mkdir()
            (run / "checkpoints" / "last.ckpt").touch()
        if cell in self.breaks:
            raise subprocess.CalledProcessError(3, "lightning")
        policy = next(name for name in SKILL if f".{name}." in cell)
        rng = random.Random(str([a for a in arguments if "/" not in a]))
        self._write(run, policy, rng)

    @staticmethod
    def _folder(root: Path, name: str) -> Path:
        taken = [path for path in root.glob(f"{name}*") if path.is_dir()]
        folder = root / (f"{name}-{len(taken) + 1}" if taken else name)
        folder.mkdir()
        return folder

    def _write(self, run: Path, policy: str, rng: random.Random) -> None:
        def answer(target: str, skill: float) -> str:
            return target if rng.random() < skill else rng.choice(CLASSES)

        truth = {f"s{k}": CLASSES[k % 3] for k in range(self.samples)}
        said = {sample: answer(target, SKILL[policy]) for sample, target in truth.items()}
        test = run / "evaluation" / "test-step8"
        test.mkdir(parents=True)
        summary = {
            **{
                "n": self.samples,
                "accuracy": 0.5,
                "macro_f1": 0.4,
                "invalid_rate": 0.1,
                "classes": 3,
            },
            **{"accuracy_interval_95": [0.4, 0.6], "macro_f1_interval_95": [0.3, 0.5]},
        }
        (test / "scores.json").write_text(json.dumps({"scorers": {"generation": summary}}))
        rows = [[sample, truth[sample], f"It is {name}.", name] for sample, name in said.items()]
        write(
            test / "predictions.csv",
            ["sample_id", "target", "generation/answer", "generation/prediction"],
            rows,
        )
        probed = [
            [
                s,
                t,
                *(answer(t, RICHNESS[policy]) for _ in range(4)),
                *(answer(t, 0.9) for _ in range(4)),
            ]
            for s, t in truth.items()
        ]
        parts = ("seed0", "seed1", "half0", "half1")
        columns = [f"{point}/mlp/{part}" for point in ("post-mean", "pre-mean") for part in parts]
        write(test / "probe-predictions.csv", ["sample_id", "target", *columns], probed)
        header = ["epoch", "step", "stage", "point", "probe", "seed", "accuracy", "macro_f1"]
        header += [
            "control_accuracy",
            "n_train",
            "n_test",
            "epochs_trained",
            "best_epoch",
            "converged",
        ]
        epochs = [(-1, "val")] if policy == "zero_shot" else [(-1, "val"), (0, "val"), (0, "test")]
        probes = [
            [
                e,
                e + 1,
                stage,
                "post-mean",
                "mlp",
                seed,
                0.5 + seed / 10,
                0.4,
                "",
                90,
                30,
                12,
                9,
                True,
            ]
            for e, stage in epochs
            for seed in (0, 1)
        ]
        write(run / "probes.csv", header, probes)
        if policy == "ft_e2e":  # the others ran before there was this file
            cells = ("both_right", "probe_only", "model_only", "both_wrong")
            header = ["epoch", "step", "stage", "target", "point", "probe", "scorer", "n"]
            header += [f"{cell}{end}" for cell in cells for end in ("", "_low_95", "_high_95")]
            shares = [0.5, 0.4, 0.6, 0.3, 0.2, 0.4, 0.1, 0, 0.2, 0.1, 0, 0.2]
            what = [(0, 1, "val", "label"), (0, 1, "val", "third")]
            beside = [[*each, "post-mean", "mlp", "generation", 30, *shares] for each in what]
            write(run / "probes_and_answers.csv", header, beside)
        if policy != "zero_shot":
            drift = [
                [epoch, epoch + 1, "post-mean", 1 - 0.1 * (epoch + 1), 0.9, 0.01]
                for epoch in (-1, 0)
            ]
            write(
                run / "drift.csv",
                ["epoch", "step", "point", "cka", "cosine", "weight_change"],
                drift,
            )


def write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture
def fake() -> FakeLightning:
    return FakeLightning()


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Change:
    """A function from changes to a study of two domains and two seeds, in an empty folder."""
    made = write_study(tmp_path, monkeypatch)

    def change(**changes: Any) -> ProjectionCommand:
        return replace(made, **changes)

    return change


def write_study(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectionCommand:
    """Go to an empty folder and write the config files of a study of two domains and two seeds."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in ("common", "leaves", "plantdoc", "proj", "e2e", "zero"):
        content = (
            "model:\n  learning_rates:\n    projector: 1.0e-3\n"
            if name == "proj"
            else f"# {name}\nx: 1\n"
        )
        Path(f"{name}.yaml").write_text(content)
    return ProjectionCommand(
        name="small",
        checkpoints={"tiny": "checkpoints/tiny"},
        domains={"leaves": ["leaves.yaml"], "plantdoc": ["plantdoc.yaml"]},
        presets={"paper": {"ft_proj": ["proj.yaml"], "ft_e2e": ["e2e.yaml"]}},
        seeds=[0, 1],
        common=["common.yaml"],
        zero_shot=["zero.yaml"],
    )


def folders_of(study: ProjectionCommand) -> dict[str, ProjectionFolder]:
    return {
        cell.id: ProjectionFolder(cell, study.folder / "cells" / cell.id)
        for cell in projection_cells(study)
    }
