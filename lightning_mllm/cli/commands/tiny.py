"""`lightning tiny`: builds a small checkpoint."""

from __future__ import annotations

from jsonargparse import auto_cli

from lightning_mllm.cli.commands import PROGRAM
from lightning_mllm.cli.plain_parser import PlainParser
from lightning_mllm.models.tiny import build_tiny_checkpoint


def run(name: str, arguments: list[str]) -> None:
    """Build it."""
    prog = f"{PROGRAM} {name}"
    auto_cli(
        build_tiny_checkpoint,
        args=arguments,
        as_positional=True,
        parser_class=PlainParser,
        prog=prog,
    )
