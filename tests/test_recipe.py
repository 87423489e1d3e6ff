"""A recipe's steps are done once, and go on where they were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lightning_mllm.recipe import Recipe, RecipeStep
from lightning_mllm.store.files import write_json, write_text

TRAINING = RecipeStep("tuned", "start", "tune.yaml", ("--seed_everything", "1"))
ANALYSIS = RecipeStep("flow-tuned", "tuned", "flow.yaml", command="analyze")
LEFT = {"fit": "checkpoints/last.ckpt", "analyze": "analysis/test-step0/flow/making.json"}


class CommandLine:
    """Writes the files that the commands of a recipe leave, and remembers the commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, list[list[str]]()
        self.stops = False  # whether the next command is stopped before its end

    def __call__(self, arguments: Sequence[str]) -> None:
        self.calls.append([*arguments])
        if "--output" in arguments:
            Path(arguments[arguments.index("--output") + 1]).mkdir(parents=True)
            return
        name = arguments[arguments.index("--trainer.run.name") + 1]
        same = len([*(self.folder / "runs").glob(f"{name}*")])
        run = self.folder / "runs" / (f"{name}-{same + 1}" if same else name)
        write_json(run / "status.json", {"status": "running" if self.stops else "finished"})
        write_text(run / LEFT[arguments[0]], "")
        if self.stops:
            self.stops = False
            raise InterruptedError


@pytest.fixture
def lightning(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


@pytest.fixture
def recipe(tmp_path: Path, lightning: CommandLine) -> Recipe:
    return Recipe(tmp_path, Path("configs"), ["--trainer.devices", "1"], lightning=lightning)


def test_a_training_is_done_once_and_exported(
    recipe: Recipe, lightning: CommandLine, tmp_path: Path
) -> None:
    for _ in range(2):
        recipe.train(TRAINING)

    fit, export = lightning.calls
    assert fit == [
        *("fit", "--config", "configs/tune.yaml", "--model.checkpoint", str(tmp_path / "start")),
        *("--trainer.run.root", str(tmp_path / "runs"), "--trainer.run.name", "tuned"),
        *("--seed_everything", "1", "--trainer.devices", "1"),
    ]
    assert export[:3] == ["export", "--config", str(tmp_path / "runs/tuned/config.yaml")]
    assert export[-2:] == ["--output", str(tmp_path / "tuned")]


def test_a_training_that_was_stopped_goes_on_from_its_checkpoint(
    recipe: Recipe, lightning: CommandLine, tmp_path: Path
) -> None:
    lightning.stops = True
    with pytest.raises(InterruptedError):
        recipe.train(TRAINING)

    recipe.train(TRAINING)

    last = str(tmp_path / "runs/tuned/checkpoints/last.ckpt")
    assert lightning.calls[1][-2:] == ["--ckpt_path", last]
    assert [each.name for each in recipe.runs_of("tuned")] == ["tuned", "tuned-2"]


def test_an_analysis_that_was_stopped_goes_on_with_what_it_has(
    recipe: Recipe, lightning: CommandLine, tmp_path: Path
) -> None:
    lightning.stops = True
    with pytest.raises(InterruptedError):
        recipe.evaluate(ANALYSIS)

    for _ in range(2):
        recipe.evaluate(ANALYSIS)

    assert len(lightning.calls) == 2
    assert "--resume" not in lightning.calls[0]
    assert lightning.calls[1][-2:] == ["--resume", str(tmp_path / "runs/flow-tuned")]


def test_runs_of_a_longer_name_are_others(recipe: Recipe, tmp_path: Path) -> None:
    for name in ("tuned", "tuned-10", "tuned-2", "tuned-again", "tuned_2"):
        (tmp_path / "runs" / name).mkdir(parents=True)

    assert [each.name for each in recipe.runs_of("tuned")] == ["tuned", "tuned-2", "tuned-10"]


def test_a_checkpoint_of_a_step_is_found_in_whichever_run_has_it(
    recipe: Recipe, tmp_path: Path
) -> None:
    write_text(tmp_path / "runs/tuned/checkpoints/epoch=0-step=50.ckpt", "")
    later = write_text(tmp_path / "runs/tuned-2/checkpoints/epoch=0-step=500.ckpt", "")

    assert recipe.checkpoint_at("tuned", 500) == later
    assert recipe.checkpoint_at("tuned", 5) is None
