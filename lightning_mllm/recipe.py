"""Trainings and evaluations one after the other, each done once: `make testbed` and `make real`.

Finished steps are not done again. A training that was stopped continues from its last training
checkpoint, an analysis from the samples that it has measured.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_mllm.store.files import read_json

_ANALYZE = "analyze"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecipeStep:
    """A training, which ends with an export, or an evaluation.

    Attributes:
        name: Name of its run, and of the checkpoint that a training exports.
        start: Name of the checkpoint that it starts from, or looks at.
        config: File name of its config.
        options: Further options.
        command: `fit`, `analyze` or `test`.
    """

    name: str
    start: str
    config: str
    options: tuple[str, ...] = ()
    command: str = "fit"


def run_recipe_step(arguments: Sequence[str]) -> None:
    """Run `lightning` in a process with one thread: two processes use two cores best."""
    subprocess.run(
        [sys.executable, "-m", "lightning_mllm", *arguments],
        check=True,
        env={"OMP_NUM_THREADS": "1", **os.environ},
    )


class Recipe:
    """Does steps in a folder.

    Args:
        folder: Folder for checkpoints and runs.
        configs: Folder of the steps' configs.
        options: Further options for every `lightning fit`.
        lightning: Function that runs the command line.
    """

    def __init__(
        self,
        folder: Path,
        configs: Path,
        options: Sequence[str] = (),
        *,
        lightning: Callable[[Sequence[str]], None] = run_recipe_step,
    ) -> None:
        self.folder, self.configs, self.options = folder, configs, tuple(options)
        self.lightning = lightning

    def train(self, step: RecipeStep) -> None:
        """Train and export, unless the export is there."""
        exported = self.folder_of(step.name)
        if exported.exists():
            logger.info("%s exists already", exported)
            return
        checkpoint = self.last_checkpoint(step.name)
        resume = ["--ckpt_path", str(checkpoint)] if checkpoint else []
        self.call("fit", *self._arguments(step), *step.options, *self.options, *resume)
        trained = self.last_checkpoint(step.name)
        assert trained is not None
        self.call(
            "export",
            *("--config", str(trained.parents[1] / "config.yaml")),
            *("--ckpt_path", str(trained)),
            *("--output", str(exported)),
        )

    def evaluate(self, step: RecipeStep) -> None:
        """Test or analyse, unless that has been finished."""
        stopped = None
        for run in self.runs_of(step.name):
            status = run / "status.json"
            if status.is_file() and read_json(status).get("status") == "finished":
                logger.info("%s is finished already", run)
                return
            if step.command == _ANALYZE and any(run.glob("analysis/*/*/making.json")):
                stopped = run
        resume = ["--resume", str(stopped)] if stopped else []
        self.call(step.command, *self._arguments(step), *step.options, *resume)

    def folder_of(self, name: str) -> Path:
        """Return the folder of a checkpoint."""
        return self.folder / name

    def runs_of(self, name: str) -> list[Path]:
        """Return the folders of a step's runs, the oldest first: `name`, `name-2`, ..."""
        found: list[tuple[int, Path]] = []
        for path in (self.folder / "runs").glob(f"{name}*"):
            if match := re.fullmatch(rf"{re.escape(name)}(?:-(\d+))?", path.name):
                found.append((int(match[1] or 1), path))
        return [path for _, path in sorted(found)]

    def last_checkpoint(self, name: str) -> Path | None:
        """Return the newest checkpoint of a training's runs."""
        found = [run / "checkpoints/last.ckpt" for run in self.runs_of(name)]
        there = [path for path in found if path.is_file()]
        return max(there, key=lambda path: path.stat().st_mtime, default=None)

    def checkpoint_at(self, name: str, step: int) -> Path | None:
        """Return the checkpoint that a training's runs wrote at an optimiser step."""
        for run in self.runs_of(name):
            for path in run.glob(f"checkpoints/*step={step}.ckpt"):
                return path
        return None

    def call(self, *arguments: str) -> None:
        """Run a command of `lightning`."""
        logger.info("lightning %s", " ".join(arguments))
        self.lightning(arguments)

    def _arguments(self, step: RecipeStep) -> list[str]:
        return [
            *("--config", str(self.configs / step.config)),
            *("--model.checkpoint", str(self.folder_of(step.start))),
            *("--trainer.run.root", str(self.folder / "runs")),
            *("--trainer.run.name", step.name),
        ]
