"""The folders of the runs that are compared, and which evaluation of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_mllm.errors import ConfigError, DataError, did_you_mean

PREDICTIONS = "predictions.csv"
CONFIG = "config.yaml"
_SPLITS = ("test", "val")  # the first that all runs have is compared
_EVALUATION = re.compile(r"(?P<stage>.+)-step(?P<step>\d+)")


@dataclass(frozen=True)
class ComparedRun:
    """A run, or one evaluation of it.

    Attributes:
        name: What it is called in tables.
        folder: Folder of the run.
        evaluation: Folder of the evaluation that is compared; None until it is chosen.
    """

    name: str
    folder: Path
    evaluation: Path | None = None

    @property
    def stage(self) -> str:
        """Name of the evaluation that is compared, e.g. `test-step320`; empty if none is yet."""
        return "" if self.evaluation is None else self.evaluation.name

    @property
    def is_evaluation(self) -> bool:
        """Whether an evaluation of the run was named, not the run."""
        return self.name.endswith(f"/{self.stage}")

    def evaluations(self) -> dict[str, Path]:
        """Return stage (`test`, `val`, `zero_shot`) -> folder of its last step, with answers."""
        found: dict[str, Path] = {}
        for folder in find_step_folders(self.folder / "evaluation", PREDICTIONS):
            found[split_step_folder(folder)[0]] = folder
        return found


def find_step_folders(root: Path, file: str) -> list[Path]:
    """Return the folders `<name>-step<k>` that hold a file, from the first step to the last."""
    found = [path.parents[file.count("/")] for path in root.glob(f"*-step*/{file}")]
    return sorted(
        {each for each in found if _EVALUATION.fullmatch(each.name)},
        key=lambda folder: split_step_folder(folder)[1],
    )


def split_step_folder(folder: Path) -> tuple[str, int]:
    """Return name and step of a folder `<name>-step<k>`."""
    match = _EVALUATION.fullmatch(folder.name)
    assert match is not None  # as `find_step_folders` has them
    return match["stage"], int(match["step"])


def open_compared_runs(paths: Sequence[Path], split: str | None = None) -> list[ComparedRun]:
    """Find the runs and the evaluation of each that is compared: the last one of a split.

    Args:
        paths: Folders of runs, or of evaluations in them (`<run>/evaluation/test-step320`).
        split: Which split is compared; by default the test split where all runs have its answers,
            else the validation split. Paths of evaluations say it themselves.

    Raises:
        ConfigError: There are fewer than two runs, one is named twice, one is no run, or a split is
            named that changes nothing.
        DataError: There is no split that all runs have answers of.
    """
    if len(paths) < 2:
        raise ConfigError(
            "A comparison needs two runs or more; name another one, e.g. `lightning compare "
            f"{paths[0] if paths else 'runs/run'} runs/run-2`."
        )
    resolved = [path.resolve() for path in paths]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise ConfigError(f"{paths[number]} is named twice; a comparison needs different runs.")
    runs = [_open_run(path) for path in paths]
    runs = _give_different_names(runs, paths)
    if split and all(run.evaluation for run in runs):
        raise ConfigError(
            f"--split {split} changes nothing, because each path names an evaluation. Leave it "
            "out, or name the folders of the runs."
        )
    chosen = split or _common_split([run for run in runs if run.evaluation is None])
    runs = [run if run.evaluation else _choose(run, chosen) for run in runs]
    _refuse_one_evaluation_twice(runs)
    return runs


def _refuse_one_evaluation_twice(runs: Sequence[ComparedRun]) -> None:
    """Refuse a run and, beside it, the evaluation of it that would be compared."""
    names: dict[Path | None, str] = {}
    for run in runs:
        if run.evaluation in names:
            raise ConfigError(
                f"{names[run.evaluation]} and {run.name} are the same evaluation, {run.stage}; a "
                "comparison needs different ones."
            )
        names[run.evaluation] = run.name


def _open_run(path: Path) -> ComparedRun:
    if not path.is_dir():
        nearby = [each.name for each in path.parent.glob("*/")] if path.parent.is_dir() else []
        raise ConfigError(
            f"There is no folder {path}. Name the folders of runs, e.g. runs/<name>, or of "
            "evaluations in them, e.g. runs/<name>/evaluation/test-step320."
            + did_you_mean(path.name, nearby)
        )
    folder = path.resolve()
    if folder.parent.name == "evaluation" and (folder / PREDICTIONS).is_file():
        run = folder.parent.parent
        return ComparedRun(f"{run.name}/{folder.name}", run, folder)
    if not any((folder / name).exists() for name in (CONFIG, "metrics.csv", "evaluation")):
        raise ConfigError(
            f"{path} is not the folder of a run: it has neither a config.yaml nor a metrics.csv "
            "nor evaluations. Expected e.g. runs/<name>."
        )
    return ComparedRun(folder.name, folder)


def _give_different_names(runs: Sequence[ComparedRun], paths: Sequence[Path]) -> list[ComparedRun]:
    """Call runs whose folders have one name as they were typed."""
    if len({run.name for run in runs}) == len(runs):
        return list(runs)
    named = zip(runs, paths, strict=True)
    return [ComparedRun(path.as_posix(), run.folder, run.evaluation) for run, path in named]


def _common_split(runs: Sequence[ComparedRun]) -> str:
    found = [run.evaluations() for run in runs]
    for split in _SPLITS:
        if all(split in stages for stages in found):
            return split
    there = "; ".join(f"{run.name}: {_list_stages(run)}" for run in runs)
    raise DataError(
        f"There is no split that all runs have answers of ({there}). Evaluate them on the same "
        "one, e.g. `lightning test --config <run>/config.yaml --ckpt_path "
        "<run>/checkpoints/last.ckpt`, and name the evaluations."
    )


def _choose(run: ComparedRun, split: str) -> ComparedRun:
    evaluations = run.evaluations()
    if split not in evaluations:
        raise DataError(
            f"{run.name} has no answers of the split {split!r}, only of these: "
            f"{_list_stages(run)}. Choose another --split, or evaluate the run on it."
        )
    return ComparedRun(run.name, run.folder, evaluations[split])


def _list_stages(run: ComparedRun) -> str:
    return ", ".join(sorted(run.evaluations())) or "none"
