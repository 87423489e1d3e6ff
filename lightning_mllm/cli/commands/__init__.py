"""The sub-commands of `lightning`.

The module of a command is imported when it runs, so that `lightning --help` needs no torch.
"""

from __future__ import annotations

from lightning_mllm.cli.commands.command import Command

PROGRAM = "lightning"


COMMANDS = (
    Command("fit", "model", "Train a model; on request, evaluate it before and after."),
    Command("validate", "model", "Evaluate a model on the validation split."),
    Command("test", "model", "Evaluate a model on the test split."),
    Command("predict", "model", "Answer a split, or your own pictures: predictions.csv."),
    Command("analyze", "model", "Run analyses of a model, e.g. attention knockout."),
    Command("extract", "extract", "Write hidden states, per token or pooled, for notebooks."),
    Command("bank", "bank", "Build a bank of text states, which patches are compared with."),
    Command("compare", "compare", "Compare runs: paired tests on the same samples, curves."),
    Command("report", "report", "Write a page of a run: pictures with maps, curves, tables."),
    Command("ask", "ask", "Ask a model a question, about pictures or without."),
    Command("export", "model", "Write a trained model as a Hugging Face folder."),
    Command("study", "study", "Run a grid of fits or measure checkpoints, and write a report."),
    Command("data check", "data_check", "Show what a dataset holds, and which files are broken."),
    Command("data gqa-tasks", "gqa_tasks", "Take the six information-flow tasks from GQA's files."),
    Command("tiny", "tiny", "Build a small checkpoint with random weights, for trials."),
    Command("assemble", "assemble", "Make a LLaVA of a vision tower and a language model."),
    Command("configs", "configs", "Copy the configs that come with the program into a folder."),
    Command("completion", "completion", "Print what lets bash, zsh or fish complete commands."),
)
SECTIONS = Command(
    "", "model", "Run the command that a config file with a section per command is for."
)
