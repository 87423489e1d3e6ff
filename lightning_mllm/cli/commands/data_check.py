"""`lightning data check`: shows what a dataset holds, without a model."""

from __future__ import annotations

import argparse
from typing import Any

from lightning_mllm.cli.commands import PROGRAM
from lightning_mllm.cli.parser import Parser
from lightning_mllm.cli.resolvers import register_resolvers
from lightning_mllm.data.datasets.inventory import SPLITS, Inventory, take_inventory
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.full_check import FullCheck, run_full_check
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.progress import console

_SECTIONS_WITHOUT_DATA = (
    *("model", "trainer", "checkpointing", "seed_everything", "test_before", "test_after"),
    *("ckpt_path", "analysis", "split", "resume"),
    *("images", "question", "classes", "return_predictions"),
)


def run(name: str, arguments: list[str]) -> None:
    """Show the dataset."""
    register_resolvers()
    parser = _parser(f"{PROGRAM} {name}")
    # a config may have it
    if any(argument.partition("=")[0] == "--split" for argument in arguments):
        parser.error("unrecognized arguments: --split")
    options = parser.instantiate(parser.parse_args(arguments))
    module, model = options.data, options.model or {}
    # the config of a fit has them in `model`
    for option in ("checkpoint", "revision", "trust_remote_code"):
        setattr(module, option, getattr(module, option) or model.get(option))
    with module.bad_rows.gather():
        found: list[Inventory | FullCheck] = [take_inventory(module, options.splits)]
        if options.all:
            found.append(run_full_check(module, options.splits))
    console.print(*found, sep="\n")


def _parser(prog: str) -> Parser:
    """Return a parser that accepts any config of a run, and reads only its section `data`."""
    description = "Show what a dataset holds."
    parser = Parser(prog=prog, description=description, parser_mode="omegaconf", allow_abbrev=False)
    parser.add_argument("--config", action="config", help="Path to a configuration file.")
    parser.add_argument(
        "--splits", type=list[Split], default=list(SPLITS), help="Splits to look at."
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="Decode every image file and write out every sample for a model.",
    )
    for section in _SECTIONS_WITHOUT_DATA:
        parser.add_argument(f"--{section}", type=Any, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", default="", help=argparse.SUPPRESS)
    parser.add_lightning_class_args(MLLMDataModule, "data", subclass_mode=True)
    parser.link_arguments("checkpoint", "data.init_args.checkpoint")
    return parser
