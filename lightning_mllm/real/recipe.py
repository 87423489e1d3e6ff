"""Makes and examines the model of real parts: `python -m lightning_mllm.real.recipe --parts PARTS`.

docs/real_llm.md says what each step costs. Each training is examined before the next begins.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_mllm.errors import DataError
from lightning_mllm.real.prepare import prepare
from lightning_mllm.real.random_llm import make_random_llm
from lightning_mllm.recipe import Recipe, RecipeStep, run_recipe_step

FOLDER = Path("checkpoints/real")  # where the configs look for checkpoint and data
_SHAPE = ("--image_size", "112", "--vision_feature_layer", "9")
_SEEDS = (1, 2, 3)
_STEPS = (50, 100)  # of trainings, at which alignment and captions are measured
_LATER_STEPS = (200, 400)  # of the longer one
_PAIRED = ("--analysis.others", "1")  # a third of the time
_GREY = ("--data.init_args.image_root", str(FOLDER / "data/grey"))

_CAPTIONS = RecipeStep("captions", "assembled", "1_captions.yaml")
_QUESTIONS = RecipeStep("questions", "captions", "2_questions.yaml")


class RealRecipe(Recipe):
    """Assembles the model, trains it and its controls, and examines them.

    Args:
        folder: Folder for checkpoints, data and runs.
        configs: Folder of the steps' configs.
        options: Further options for every `lightning fit`.
        parts: Folder of the pictures and captions.
        vision: Hub id or folder of the vision tower.
        llm: Hub id or folder of the language model.
        lightning: Function that runs the command line.
    """

    def __init__(
        self,
        folder: Path,
        configs: Path,
        options: Sequence[str] = (),
        *,
        parts: Path,
        vision: str,
        llm: str,
        lightning: Callable[[Sequence[str]], None] = run_recipe_step,
    ) -> None:
        super().__init__(folder, configs, options, lightning=lightning)
        self.parts, self.vision, self.llm = parts, vision, llm

    def run(self) -> None:
        """Do everything that is not done yet."""
        if not (self.folder / "data/questions/few.json").is_file():
            prepare(self.parts, self.folder / "data")
        self._assemble("assembled", self.llm, seed=0)
        self._examine_captions("before", "assembled", _PAIRED)
        self.train(_CAPTIONS)
        self._examine_captions("captions", "captions")
        self._caption("captions_blind", "captions", _GREY)
        self._follow("captions", (*_STEPS, *_LATER_STEPS))
        self.train(_QUESTIONS)
        self._examine_questions()
        self._train_random()
        for seed in _SEEDS:
            self._train_again(seed)

    def _assemble(self, name: str, llm: str, seed: int) -> None:
        """Assemble a model with a projection of its own."""
        output = self.folder_of(name)
        if not output.exists():
            parts = ("--vision", self.vision, "--llm", llm, "--seed", str(seed))
            self.call("assemble", *parts, *_SHAPE, "--output", str(output))

    def _train_random(self) -> None:
        """Train the projection of a model whose LLM is random."""
        random = self.folder_of("random_llm")
        if not random.exists():
            make_random_llm(self.llm, random, seed=0)
        self._assemble("assembled_random", str(random), seed=0)
        self.train(RecipeStep("captions_random", "assembled_random", "3_captions_short.yaml"))
        self._examine_captions("captions_random", "captions_random")

    def _train_again(self, seed: int) -> None:
        """Train another projection from another beginning, in another order."""
        name, start = f"captions_seed{seed}", f"assembled_seed{seed}"
        self._assemble(start, self.llm, seed)
        seeded = ("--seed_everything", str(seed))
        self.train(RecipeStep(name, start, "3_captions_short.yaml", seeded))
        # one among as many as the random LLM, which it is the counterpart of
        self._examine_captions(name, name, () if seed == _SEEDS[0] else _PAIRED)
        self._follow(name, _STEPS)

    def _examine_captions(self, name: str, checkpoint: str, options: tuple[str, ...] = ()) -> None:
        """Measure whether captions are grounded, how good they are, and the alignment."""
        self._analyse(f"grounding-{name}", checkpoint, "grounding.yaml", options)
        self._caption(name, checkpoint)
        self._analyse(f"alignment-{name}", checkpoint, "alignment.yaml")

    def _examine_questions(self) -> None:
        """Measure answers with and without pictures, and how they come about."""
        for name, options in (("questions", ()), ("questions_blind", _GREY)):
            step = RecipeStep(f"answers-{name}", "questions", "answers.yaml", options, "test")
            self.evaluate(step)
        self._analyse("flow-questions", "questions", "information_flow.yaml")

    def _follow(self, training: str, steps: Sequence[int]) -> None:
        """Measure alignment and captions at checkpoints of a training."""
        start = "assembled" + training.removeprefix("captions")
        for at in steps:
            checkpoint = self.checkpoint_at(training, at)
            if checkpoint is None:
                raise DataError(
                    f"{training} has no checkpoint of step {at}, at which it is to be measured. "
                    f"Delete the run and the checkpoint {training}, so that it is trained anew."
                )
            options = ("--ckpt_path", str(checkpoint))
            self._analyse(f"alignment-{training}_step{at}", start, "alignment.yaml", options)
            self._caption(f"{training}_step{at}", start, options)

    def _caption(self, name: str, checkpoint: str, options: tuple[str, ...] = ()) -> None:
        step = RecipeStep(f"described-{name}", checkpoint, "described.yaml", options, "test")
        self.evaluate(step)

    def _analyse(
        self, name: str, checkpoint: str, config: str, options: tuple[str, ...] = ()
    ) -> None:
        self.evaluate(RecipeStep(name, checkpoint, config, options, "analyze"))


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--parts", type=Path, required=True, help="folder of pictures and captions")
    parser.add_argument("--vision", default="facebook/dinov2-small", help="hub id or folder")
    parser.add_argument("--llm", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="the same")
    parser.add_argument("--configs", type=Path, default=Path("configs/real"))
    given, options = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = RealRecipe(
        FOLDER, given.configs, options, parts=given.parts, vision=given.vision, llm=given.llm
    )
    recipe.run()


if __name__ == "__main__":
    main()
