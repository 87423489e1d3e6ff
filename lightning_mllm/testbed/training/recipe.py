"""Trains the test-bed's models from nothing: `python -m lightning_mllm.testbed.training.recipe`.

Each step is a `lightning fit` and a `lightning export`. What is finished is not done again, what was interrupted goes
on from its last checkpoint.
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

from lightning_mllm.testbed.training.checkpoints import STAGES, graft, pack

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One training.

    Attributes:
        name: Name of the run and of the export.
        start: The checkpoint it starts from.
        number: Place in the order of the steps, with which the name of the config begins.
    """

    name: str
    start: str
    number: str


WORDS = Step("words", "start", "1")
LANGUAGE = (Step("language", "words", "2"),)
VISION = (Step("shapes", "words", "3a"), Step("vision", "shapes", "3b"))
TOGETHER = (Step("aligned", "before", "4"), Step("instructed", "aligned", "5"))


def in_a_process(arguments: Sequence[str]) -> None:
    """Run `lightning` with arguments; with one thread, since two processes share two cores better than two threads."""
    subprocess.run(
        [sys.executable, "-m", "lightning_mllm", *arguments],
        check=True,
        env={"OMP_NUM_THREADS": "1", **os.environ},
    )


class Recipe:
    """The recipe in a folder.

    Args:
        folder: Where checkpoints and runs go.
        configs: Where the steps' configs are.
        options: Further options for every `lightning fit`.
        lightning: Runs the command line.
        side_by_side: Whether what does not need each other runs at the same time.
    """

    def __init__(
        self,
        folder: Path,
        configs: Path,
        options: Sequence[str] = (),
        *,
        lightning: Callable[[Sequence[str]], None] = in_a_process,
        side_by_side: bool = True,
    ) -> None:
        self.folder, self.configs, self.options = folder, configs, tuple(options)
        self.lightning, self.side_by_side = lightning, side_by_side

    def run(self) -> None:
        """Do all that is not done."""
        if not self._of("start").exists():
            self._lightning("tiny", str(self._of("start")), "--config", str(self.configs / "0_start.yaml"))
        self._train(WORDS)
        if self.side_by_side:
            with ThreadPoolExecutor() as pool:
                list(pool.map(self._train_all, (LANGUAGE, VISION)))
        else:
            self._train_all((*LANGUAGE, *VISION))
        if not self._of("before").exists():
            graft(
                self._of("before"),
                llm=self._of("language"),
                vision=self._of("vision"),
                projector=self._of("start"),
            )
        self._train_all(TOGETHER)
        if not self._of("weights").exists():
            pack(self._of("weights"), {stage: self._of(stage) for stage in STAGES})

    def _train_all(self, steps: Sequence[Step]) -> None:
        for step in steps:
            try:
                self._train(step)
            except subprocess.CalledProcessError:
                log.error("%s failed; what runs beside it is finished first", step.name)  # the error itself comes then
                raise

    def _train(self, step: Step) -> None:
        if self._of(step.name).exists():
            log.info("%s is there", self._of(step.name))
            return
        checkpoint = self._last_checkpoint(step)
        resume = ["--ckpt_path", str(checkpoint)] if checkpoint else []
        self._lightning(
            "fit",
            *("--config", str(self.configs / f"{step.number}_{step.name}.yaml")),
            *("--model.checkpoint", str(self._of(step.start))),
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
            *("--output", str(self._of(step.name))),
        )

    def _of(self, name: str) -> Path:
        """Return where a checkpoint goes."""
        return self.folder / name

    def _last_checkpoint(self, step: Step) -> Path | None:
        """Return the newest checkpoint of a step's runs."""
        found = self.folder.glob(f"runs/{step.name}*/checkpoints/last.ckpt")
        return max(found, key=lambda path: path.stat().st_mtime, default=None)

    def _lightning(self, *arguments: str) -> None:
        log.info("lightning %s", " ".join(arguments))
        self.lightning(arguments)


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="where checkpoints and runs go")
    parser.add_argument("--configs", type=Path, default=Path("configs/testbed_training"))
    arguments, options = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    Recipe(arguments.folder, arguments.configs, options).run()


if __name__ == "__main__":
    main()
