"""`lightning study`: runs a study and writes its report."""

from __future__ import annotations

import sys

from jsonargparse import auto_cli

from lightning_mllm.cli.commands import PROGRAM
from lightning_mllm.cli.plain_parser import PlainParser
from lightning_mllm.cli.resolvers import register_resolvers, resolved
from lightning_mllm.study import run_study, study_class


def run(name: str, arguments: list[str]) -> None:
    """Run the study; exit with status 1 if a cell has failed."""
    register_resolvers()
    arguments = ["--dry_run=true" if each == "--dry-run" else resolved(each) for each in arguments]
    study = auto_cli(
        study_class(arguments),
        args=arguments,
        prog=f"{PROGRAM} {name}",
        description=(
            "Run a grid of runs and write a report. "
            f"Options of the other kind of study: {PROGRAM} {name} --kind alignment --help."
        ),
        as_positional=False,
        return_instance=True,
        parser_class=PlainParser,
        parser_mode="omegaconf",  # the cells get what ${testbed:instructed} stands for
        allow_abbrev=False,
    )
    if run_study(study):
        sys.exit(1)
