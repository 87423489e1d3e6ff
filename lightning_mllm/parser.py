"""Parsers, and their messages for misspelt options: what there is instead, without the pages of usage."""

from __future__ import annotations

import argparse
import difflib
import inspect
import pydoc
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from lightning_mllm.analysis.base import Analysis
from lightning_mllm.data.base import MLLMDataModule
from lightning_mllm.data.inventory import SPLITS
from lightning_mllm.data.prompts import Prompt
from lightning_mllm.data.splits import Split
from lightning_mllm.evaluation import Scorer
from lightning_mllm.models.freeze import FreezePolicy

_NO_DATA = (
    *("model", "trainer", "checkpointing", "seed_everything", "test_before", "test_after", "ckpt_path"),
    *("analysis", "split", "resume"),
)
_CHOSEN_BY_NAME = (MLLMDataModule, FreezePolicy, Prompt, Scorer, Analysis)


class Parser(LightningArgumentParser):
    """Says what is wrong without the pages of usage, and names the option nearest to a misspelt one."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Exit with status 2 and a message."""
        if match := re.search(r"(?:unrecognized arguments: --|does not accept option ')([\w.]+)", message):
            message += self._nearest(match[1])
        elif match := re.search(r"\S+ has no option .*\n\s*Did you mean .*\?", message):
            message = match[0]  # of a class within a class
        elif match := re.search(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message):
            message = f"{match[1]} has no option {match[2]!r}." + _suggestion(match[2], _options(match[1]))
        elif match := re.search(r"Expected a dot import path string: (\w+)$", message, re.MULTILINE):
            message = f"There is no class {match[1]!r}." + _suggestion(match[1], _class_names(*_CHOSEN_BY_NAME))
        if "subcommand" in message:
            commands = [name for action in self._actions if isinstance(action.choices, dict) for name in action.choices]
            message = re.sub(r"\{[\w,]+, \.\.\.\}", f"{{{','.join(commands)}}}", message)  # jsonargparse names five
            message += (
                "\n(`lightning tiny` builds a small checkpoint, `lightning data check` looks at a dataset, "
                "`lightning data gqa-tasks` takes tasks from GQA's questions, `lightning study` runs a grid of fits "
                "or measures a list of checkpoints.)"
            )
        if not self.exit_on_error:
            return super().error(message, ex)
        sys.stderr.write(f"error: {message}\nFor all options: {self.prog} --help\n")
        sys.exit(2)

    def _nearest(self, key: str) -> str:
        parsers = [self, *(p for a in self._actions if isinstance(a.choices, dict) for p in a.choices.values())]
        return _suggestion(key, {action.dest for parser in parsers for action in parser._actions} - {key})


def data_parser(prog: str) -> Parser:
    """Return the parser of a command that takes a dataset and no model; of a fit's config it reads only `data`."""
    parser = Parser(prog=prog, description="Shows what a dataset holds.", parser_mode="omegaconf", allow_abbrev=False)
    parser.add_argument("--config", action="config", help="Path to a configuration file.")
    parser.add_argument("--splits", type=list[Split], default=list(SPLITS), help="What to look at.")
    parser.add_argument("--all", action="store_true", help="Write out every sample for a model, and decode every file.")
    for section in _NO_DATA:
        parser.add_argument(f"--{section}", type=Any, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", default="", help=argparse.SUPPRESS)  # a DataModule needs one, `load` does not
    parser.add_lightning_class_args(MLLMDataModule, "data", subclass_mode=True)
    parser.link_arguments("checkpoint", "data.init_args.checkpoint")
    return parser


def tasks_parser(prog: str) -> Parser:
    """Return the parser of the command that takes the information-flow study's tasks from GQA's own files."""
    parser = Parser(prog=prog, description="Takes the six tasks from GQA's own questions.", allow_abbrev=False)
    for option, count, help in (
        ("questions", "+", "GQA's question files, e.g. val_all_questions.json."),
        ("scenes", None, "Its file of scene graphs, e.g. val_sceneGraphs.json."),
        ("output", None, "Folder for a CSV file per task; made if need be."),
    ):
        parser.add_argument(f"--{option}", type=Path, nargs=count, required=True, help=help)
    return parser


def _suggestion(wrong: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(wrong, sorted(known), n=1)
    return f'\nDid you mean "{found[0]}"?' if found else ""


def _options(class_path: str) -> set[str]:
    """Return the options of a class and of those that it hands its `**kwargs` to."""
    classes: tuple[type, ...] = getattr(pydoc.locate(class_path), "__mro__", ())
    names = {name for each in classes if each is not object for name in inspect.signature(each).parameters}
    return names - {"args", "kwargs"}


def _class_names(*bases: type) -> set[str]:
    names: set[str] = set()
    for base in bases:
        subclasses: list[type] = base.__subclasses__()
        for subclass in subclasses:
            names |= {subclass.__name__} | _class_names(subclass)
    return names
