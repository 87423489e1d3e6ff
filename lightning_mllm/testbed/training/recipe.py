"""Trains the test-bed's models from scratch: `python -m lightning_mllm.testbed.training.recipe`.

Each step is a `lightning fit` and a `lightning export`. Finished steps are not done again; an
interrupted step continues from its last training checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lightning_mllm.testbed.training.checkpoints import STAGES, graft_checkpoint, pack_checkpoints

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecipeStep:
    """One training.

    Attributes:
        name: Name of its run and export.
        start: Name of the checkpoint that it starts from.
        number: Place in the order of the steps, with which the name of the config begins.
    """

    name: str
    start: str
    number: str


WORDS = RecipeStep("words", "start", "1")
LANGUAGE = (RecipeStep("language", "words", "2"),)
VISION = (RecipeStep("shapes", "words", "3a"), RecipeStep("vision", "shapes", "3b"))
TOGETHER = (RecipeStep("aligned", "before", "4"), RecipeStep("instructed", "aligned", "5"))


def run_recipe_step(arguments: Sequence[str]) -> None:
    """Run `lightning` in a process with one thread: two processes use two cores best."""
    subprocess.run(
        [sys.executable, "-m", "lightning_mllm", *arguments],
        check=True,
        env={"OMP_NUM_THREADS": "1", **os.environ},
    )


class Recipe:
    """Trains all steps in a folder.

    Args:
        folder: Folder for checkpoints and runs.
        configs: Folder of the steps' configs.
        options: Further options for every `lightning fit`.
        lightning: Function that runs the command line.
        side_by_side: Whether independent steps run at the same time.
    """

    def __init__(
        self,
        folder: Path,
        configs: Path,
        options: Sequence[str] = (),
        *,
        lightning: Callable[[Sequence[str]], None] = run_recipe_step,
        side_by_side: bool = True,
    ) -> None:
        self.folder, self.configs, self.options = folder, configs, tuple(options)
        self.lightning, self.side_by_side = lightning, side_by_side

    def run(self) -> None:
        """Do everything that is not done yet."""
        start = self._folder_of("start")
        if not start.exists():
            config = str(self.configs / "0_start.yaml")
            self._lightning("tiny", str(start), "--config", config)
        self._train(WORDS)
        if self.side_by_side:
            with ThreadPoolExecutor() as pool:
                list(pool.map(self._train_all, (LANGUAGE, VISION)))
        else:
            self._train_all((*LANGUAGE, *VISION))
        before, weights = self._folder_of("before"), self._folder_of("weights")
        if not before.exists():
            graft_checkpoint(
                before,
                llm=self._folder_of("language"),
                vision=self._folder_of("vision"),
                projector=start,
            )
        self._train_all(TOGETHER)
        if not weights.exists():
            pack_checkpoints(weights, {stage: self._folder_of(stage) for stage in STAGES})

    def _train_all(self, steps: Sequence[RecipeStep]) -> None:
        for step in steps:
            try:
                self._train(step)
            except subprocess.CalledProcessError:
                # the exception is raised when the steps at the same time have finished
                logger.error("%s failed; steps that run at the same time go on", step.name)
                raise

    def _train(self, step: RecipeStep) -> None:
        exported = self._folder_of(step.name)
        if exported.exists():
            logger.info("%s exists already", exported)
            return
        checkpoint = self._last_checkpoint(step)
        resume = ["--ckpt_path", str(checkpoint)] if checkpoint else []
        self._lightning(
            "fit",
            *("--config", str(self.configs / f"{step.number}_{step.name}.yaml")),
            *("--model.checkpoint", str(self._folder_of(step.start))),
            *("--trainer.run.root", str(self.folder / "runs")),
            *("--trainer.run.name", step.name),
            *self.options,
            *resume,
        )
        trained = self._last_checkpoint(step)
        assert trained is not None
        self._lightning(
            "export",
            *("--config", str(trained.parents[1] / "config.yaml")),
            *("--ckpt_path", str(trained)),
            *("--output", str(exported)),
        )

    def _folder_of(self, name: str) -> Path:
        """Return the folder of a checkpoint."""
        return self.folder / name

    def _last_checkpoint(self, step: RecipeStep) -> Path | None:
        """Return the newest checkpoint of a step's runs."""
        found = self.folder.glob(f"runs/{step.name}*/checkpoints/last.ckpt")
        return max(found, key=lambda path: path.stat().st_mtime, default=None)

    def _lightning(self, *arguments: str) -> None:
        logger.info("lightning %s", " ".join(arguments))
        self.lightning(arguments)


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="folder for checkpoints and runs")
    parser.add_argument("--configs", type=Path, default=Path("configs/testbed_training"))
    arguments, options = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    Recipe(arguments.folder, arguments.configs, options).run()


if __name__ == "__main__":
    main()
