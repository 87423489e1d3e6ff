"""Parsers, and their messages for misspelt options: what there is instead, without the pages of usage."""

from __future__ import annotations

import argparse
import difflib
import inspect
import logging
import pydoc
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.data.datasets.inventory import SPLITS
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.data.text.prompts import Prompt
from lightning_mllm.evaluation import Scorer
from lightning_mllm.models.freeze import FreezePolicy

_NO_DATA = (
    *("model", "trainer", "checkpointing", "seed_everything", "test_before", "test_after", "ckpt_path"),
    *("analysis", "split", "resume"),
)
_CHOSEN_BY_NAME = (MLLMDataModule, FreezePolicy, Prompt, Scorer, Analysis)


logger = logging.getLogger(__name__)


class Parser(LightningArgumentParser):
    """Says what is wrong without the pages of usage, and names the option nearest to a misspelt one.

    Where a config file, or the command line, gives a list that an earlier file has given, the later one counts alone,
    and it is said what is dropped.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._files: list[tuple[str, Namespace]] = []  # configs that were read, with their names

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Read a config file."""
        config: Namespace = super().parse_path(cfg_path, *args, **kwargs)
        self._say_what_is_dropped(config, str(cfg_path))
        self._files.append((str(cfg_path), config))
        return config

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]  # the same
        """Parse the command line, and the config files that it names."""
        config: Namespace = super().parse_args(*args, **kwargs)
        parsers = {name: each for a in self._actions if isinstance(a.choices, dict) for name, each in a.choices.items()}
        for part, parser in [(config, self), *((config.get(name), each) for name, each in parsers.items())]:
            if part is not None:
                parser._say_what_is_dropped(part)
        return config

    def _say_what_is_dropped(self, config: Namespace, file: str | None = None) -> None:
        """Compare the lists of a config with those of earlier files; of the command line, lists of classes alone."""
        lists = [action.dest for action in self._actions if _takes_lists(getattr(action, "_typehint", None))]
        lists += [
            key for _, each in [*self._files, (file, config)] for key, value in each.items() if type(value) is list
        ]
        for key in dict.fromkeys(lists):
            earlier, before = next(((name, each[key]) for name, each in reversed(self._files) if key in each), ("", []))
            dropped = _dropped(_as_list(before), _as_list(config[key]) if key in config else _as_list(before))
            if dropped := [each for each in dropped if file or isinstance(each, Namespace)]:
                logger.warning(
                    "%s gives %s anew, so that what %s has there is dropped: %s. To add to a list, write `%s+`.",
                    *(file or "The command line", key, earlier, ", ".join(map(_name, dropped))),
                    key.rpartition(".")[2],
                )

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


def _takes_lists(hint: Any) -> bool:
    return any(get_origin(part) in (list, Sequence) for part in (hint, *get_args(hint)))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _dropped(before: list[Any], now: list[Any]) -> list[Any]:
    """Return what a list has and another has not, but for numbers and `${...}`, which are not members but values."""
    gone = [each for each in before if not any(_is_in_place_of(other, each) for other in now)]
    return [each for each in gone if not isinstance(each, int | float) and "${" not in str(each)]


def _is_in_place_of(other: Any, item: Any) -> bool:
    """Return whether an item is the other one, or of its class, whatever the options."""
    if not isinstance(item, Namespace | dict) or not isinstance(other, Namespace | dict):
        return bool(item == other)
    return all(other.get(key) == item[key] for key in (["class_path"] if "class_path" in item else item.keys()))


def _name(item: Any) -> str:
    if isinstance(item, Namespace | dict):
        options = ", ".join(f"{key}: {value}" for key, value in item.items())
        return str(item["class_path"]).rpartition(".")[2] if "class_path" in item else f"{{{options}}}"
    return str(item)
