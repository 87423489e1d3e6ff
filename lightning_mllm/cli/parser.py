"""The parser of commands whose options are those of Lightning's classes and of ours."""

from __future__ import annotations

from lightning.pytorch.cli import LightningArgumentParser

# a short class name in a config resolves only if the class is imported
from lightning_mllm import analysis, data, evaluation  # noqa: F401
from lightning_mllm.cli.plain_parser import PlainParser
from lightning_mllm.models.optimisation.muon import MuonAdamW  # noqa: F401
from lightning_mllm.testbed import datamodules  # noqa: F401
from lightning_mllm.testbed.domains import datamodule  # noqa: F401


class Parser(PlainParser, LightningArgumentParser):
    """Lightning's parser with our answers to mistakes."""
