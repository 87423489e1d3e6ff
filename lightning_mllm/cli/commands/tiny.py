"""`lightning tiny`: builds a small checkpoint."""

from __future__ import annotations

from jsonargparse import auto_cli

from lightning_mllm.cli.commands import PROGRAM
from lightning_mllm.cli.plain_parser import PlainParser
from lightning_mllm.models.tiny import build_tiny_checkpoint
from lightning_mllm.progress import console


def run(name: str, arguments: list[str]) -> None:
    """Build it, and say what it is for."""
    prog = f"{PROGRAM} {name}"
    folder = auto_cli(
        build_tiny_checkpoint,
        args=arguments,
        as_positional=True,
        parser_class=PlainParser,
        prog=prog,
    )
    console.print(
        f"{folder} is a small checkpoint with random weights. To try it:\n"
        f"  {PROGRAM} fit --model.checkpoint {folder} --data Digits",
        soft_wrap=True,
    )
