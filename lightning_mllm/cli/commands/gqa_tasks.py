"""`lightning data gqa-tasks`: takes the information-flow study's tasks from GQA's own files."""

from __future__ import annotations

from pathlib import Path

from lightning_mllm.cli.commands import PROGRAM
from lightning_mllm.cli.plain_parser import PlainParser
from lightning_mllm.data.datasets.gqa.extraction import write_extracted_tasks
from lightning_mllm.progress import console


def run(name: str, arguments: list[str]) -> None:
    """Write a CSV file per task, and say where."""
    options = _parser(f"{PROGRAM} {name}").parse_args(arguments)
    files = write_extracted_tasks(options.questions, options.scenes, options.output)
    for file in files:
        console.print(file, soft_wrap=True)
    console.print(f"{len(files)} tasks; configs/data/gqa.yaml shows how a run reads them.")


def _parser(prog: str) -> PlainParser:
    description = "Take the six information-flow tasks from GQA's own questions."
    parser = PlainParser(prog=prog, description=description, allow_abbrev=False)
    for option, count, help in (
        ("questions", "+", "Question files of GQA, e.g. val_all_questions.json."),
        ("scenes", None, "File of GQA with the scene graphs, e.g. val_sceneGraphs.json."),
        ("output", None, "Folder for a CSV file per task; it is created if necessary."),
    ):
        parser.add_argument(f"--{option}", type=Path, nargs=count, required=True, help=help)
    return parser
