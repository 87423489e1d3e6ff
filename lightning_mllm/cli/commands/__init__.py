"""The sub-commands of `lightning`.

The module of a command is imported when it runs, so that `lightning --help` needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

PROGRAM = "lightning"


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        name: What users type: a name, or a group and a name in it.
        module: Module of this package whose function `run` executes the command.
        help: What the command does, in one sentence for `lightning --help`.
    """

    name: str
    module: str
    help: str

    def run(self, arguments: list[str]) -> None:
        """Execute the command with the arguments that follow its name."""
        import_module(f"{__name__}.{self.module}").run(self.name, arguments)


COMMANDS = (
    Command("fit", "model", "Train a model; on request, evaluate it before and after."),
    Command("validate", "model", "Evaluate a model on the validation split."),
    Command("test", "model", "Evaluate a model on the test split."),
    Command("predict", "model", "Go through the test split with your own callbacks."),
    Command("analyze", "model", "Run analyses of a model, e.g. attention knockout."),
    Command("export", "model", "Write a trained model as a Hugging Face folder."),
    Command("study", "study", "Run a grid of fits or measure checkpoints, and write a report."),
    Command("data check", "data_check", "Show what a dataset holds, and which files are broken."),
    Command("data gqa-tasks", "gqa_tasks", "Take the six information-flow tasks from GQA's files."),
    Command("tiny", "tiny", "Build a small checkpoint with random weights, for trials."),
)
SECTIONS = Command(
    "", "model", "Run the command that a config file with a section per command is for."
)
