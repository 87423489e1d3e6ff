"""Trains the test-bed's models from scratch: `python -m lightning_mllm.testbed.training.recipe`.

Each step is a `lightning fit` and a `lightning export`; see `lightning_mllm.recipe`.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lightning_mllm.recipe import Recipe, RecipeStep, run_recipe_step
from lightning_mllm.testbed.training.checkpoints import STAGES, graft_checkpoint, pack_checkpoints

logger = logging.getLogger(__name__)

WORDS = RecipeStep("words", "start", "1_words.yaml")
LANGUAGE = (RecipeStep("language", "words", "2_language.yaml"),)
VISION = (
    RecipeStep("shapes", "words", "3a_shapes.yaml"),
    RecipeStep("vision", "shapes", "3b_vision.yaml"),
)
TOGETHER = (
    RecipeStep("aligned", "before", "4_aligned.yaml"),
    RecipeStep("instructed", "aligned", "5_instructed.yaml"),
)


class TestbedRecipe(Recipe):
    """Trains all steps in a folder.

    Args:
        folder: Folder for checkpoints and runs.
        configs: Folder of the steps' configs.
        options: Further options for every `lightning fit`.
        lightning: Function that runs the command line.
        side_by_side: Whether independent steps run at the same time.
    """

    __test__ = False  # pytest takes a class of this name for tests

    def __init__(
        self,
        folder: Path,
        configs: Path,
        options: Sequence[str] = (),
        *,
        lightning: Callable[[Sequence[str]], None] = run_recipe_step,
        side_by_side: bool = True,
    ) -> None:
        super().__init__(folder, configs, options, lightning=lightning)
        self.side_by_side = side_by_side

    def run(self) -> None:
        """Do everything that is not done yet."""
        start = self.folder_of("start")
        if not start.exists():
            self.call("tiny", str(start), "--config", str(self.configs / "0_start.yaml"))
        self.train(WORDS)
        if self.side_by_side:
            with ThreadPoolExecutor() as pool:
                list(pool.map(self._train_all, (LANGUAGE, VISION)))
        else:
            self._train_all((*LANGUAGE, *VISION))
        before, weights = self.folder_of("before"), self.folder_of("weights")
        if not before.exists():
            graft_checkpoint(
                before,
                llm=self.folder_of("language"),
                vision=self.folder_of("vision"),
                projector=start,
            )
        self._train_all(TOGETHER)
        if not weights.exists():
            pack_checkpoints(weights, {stage: self.folder_of(stage) for stage in STAGES})

    def _train_all(self, steps: Sequence[RecipeStep]) -> None:
        for step in steps:
            try:
                self.train(step)
            except subprocess.CalledProcessError:
                # the exception is raised when the steps at the same time have finished
                logger.error("%s failed; steps that run at the same time go on", step.name)
                raise


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="folder for checkpoints and runs")
    parser.add_argument("--configs", type=Path, default=Path("configs/testbed_training"))
    arguments, options = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    TestbedRecipe(arguments.folder, arguments.configs, options).run()


if __name__ == "__main__":
    main()
