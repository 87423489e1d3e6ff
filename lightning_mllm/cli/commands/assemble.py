"""`lightning assemble`: makes a multimodal checkpoint of a vision tower and a language model."""

from __future__ import annotations

from jsonargparse import auto_cli

from lightning_mllm.cli.commands import PROGRAM
from lightning_mllm.cli.plain_parser import PlainParser
from lightning_mllm.models.assemble.checkpoint import assemble_checkpoint
from lightning_mllm.progress import console


def run(name: str, arguments: list[str]) -> None:
    """Make it, and say how its projection is trained."""
    folder = auto_cli(
        assemble_checkpoint,
        args=arguments,
        as_positional=False,
        parser_class=PlainParser,
        prog=f"{PROGRAM} {name}",
    )
    console.print(
        f"{folder} is a LLaVA with an untrained projection. To train it on your captions:\n"
        f"  {PROGRAM} fit --model.checkpoint {folder} --config configs/policy/ft_proj.yaml "
        "--config configs/data/llava_json.yaml",
        soft_wrap=True,
    )
